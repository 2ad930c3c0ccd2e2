"""SDXL at full size, with random weights in float16 on disk.

Takes 13 GB of disk below pytest's folder and up to 22 GiB of memory.
"""

import json
import pathlib
import threading
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch

from jaxpref.models.build import bind, define
from jaxpref.models.sdxl.clip_config import clip_l, open_clip_bigg
from jaxpref.models.sdxl.config import sdxl_base
from jaxpref.models.sdxl.parts import load_part
from jaxpref.models.sdxl.pipeline import (
  StoredParts,
  open_pipeline,
  save_pipeline,
)
from jaxpref.models.sdxl.vae_config import sdxl_vae
from jaxpref.models.stream import write_safetensors
from jaxpref.models.weights import at

pytestmark = pytest.mark.certify

PARTS = {
  "unet": (sdxl_base(), "diffusion_pytorch_model.fp16.safetensors"),
  "vae": (sdxl_vae(), "diffusion_pytorch_model.fp16.safetensors"),
  "text_encoder": (clip_l(), "model.fp16.safetensors"),
  "text_encoder_2": (open_clip_bigg(), "model.fp16.safetensors"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Kernels at 1/sqrt(fan_in), norms about 1; written tensor by tensor."""
  folder = tmp_path_factory.mktemp("sdxl") / "before"
  index = {"_class_name": "StableDiffusionXLPipeline"}
  for name, (config, file) in PARTS.items():
    (folder / name).mkdir(parents=True)
    given = config.to_json()
    (folder / name / "config.json").write_text(json.dumps(given))
    kind = given.get("_class_name") or given["architectures"][0]
    index[name] = ["diffusers" if "_class_name" in given else "", kind]
    definition = define(config, dtype="float32")
    shapes = {}
    for weight in definition.table:
      layers = at(definition.shapes, weight.path).shape[0]
      for layer in range(layers if weight.stacked else 1):
        shapes[weight.name.format(layer)] = weight.shape
    tensors = ((key, _draw(key, shape)) for key, shape in shapes.items())
    half = np.dtype(np.float16)
    write_safetensors(folder / name / file, shapes, half, tensors)
  (folder / "model_index.json").write_text(json.dumps(index))
  return folder


def _draw(name, shape):
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  noise = rng.standard_normal(shape, np.float32)
  if "norm" in name and name.endswith("weight"):
    noise = 1.0 + 0.1 * noise
  elif len(shape) > 1:
    noise /= np.sqrt(np.prod(shape[1:]))
  else:
    noise *= 0.1
  return noise.astype(np.float16)


class _Peak(threading.Thread):
  """The most anonymous memory (not the mapped files) while it runs."""

  def __enter__(self):
    self.start_bytes = self.peak = _anonymous()
    self.over = threading.Event()
    self.start()
    return self

  def __exit__(self, *_):
    self.over.set()
    self.join()

  def run(self):
    while not self.over.wait(0.01):
      self.peak = max(self.peak, _anonymous())


def _anonymous():
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(status.split("RssAnon:")[1].split()[0])


def test_a_folder_comes_back_bit_equal(folder, certify):
  out = folder.parent / "after"
  with _Peak() as memory:
    pipeline = open_pipeline(folder, param_dtype="float16")
    save_pipeline(out, pipeline, StoredParts(pipeline), variant="fp16")
  differ, largest = 0, 0
  for name, (_, file) in PARTS.items():
    size = (folder / name / file).stat().st_size
    largest = max(largest, size)
    with (
      safetensors.safe_open(folder / name / file, "numpy") as before,
      safetensors.safe_open(out / name / file, "numpy") as after,
    ):
      assert set(before.keys()) == set(after.keys())
      for key in before.keys():  # noqa: SIM118
        one, two = before.get_tensor(key), after.get_tensor(key)
        differ += not np.array_equal(one, two) or one.dtype != two.dtype
  used = (memory.peak - memory.start_bytes) / largest
  certify(
    "SDXL, a float16 folder loaded and saved",
    f"{differ} tensors differ, peak memory {used:.2f} of the largest part",
    "bit-equal, at most 1.3",
    not differ and used <= 1.3,
  )


def test_the_unet_is_diffusers(folder, certify):
  import diffusers

  rng = np.random.default_rng(0)
  latents = rng.standard_normal((1, 64, 64, 4), np.float32)
  context = rng.standard_normal((1, 77, 2048), np.float32)
  added = {
    "text_embeds": rng.standard_normal((1, 1280), np.float32),
    "time_ids": np.array([[512, 512, 0, 0, 512, 512]], np.float32),
  }
  time = np.array([501.0], np.float32)
  model = diffusers.UNet2DConditionModel.from_pretrained(
    folder / "unet", variant="fp16", torch_dtype=torch.float32
  )
  with torch.no_grad():
    theirs = model(
      torch.tensor(latents).permute(0, 3, 1, 2),
      torch.tensor(time),
      torch.tensor(context),
      added_cond_kwargs={k: torch.tensor(v) for k, v in added.items()},
    ).sample
  theirs = theirs.permute(0, 2, 3, 1).numpy()
  del model
  definition = define(sdxl_base(), dtype="float32")
  params = load_part(folder / "unet", definition, variant="fp16")
  forward = jax.jit(lambda params, *args: bind(definition, params)(*args))
  ours = forward(params, latents, jnp.asarray(time), context, added)
  error = np.abs(ours - theirs).max() / np.abs(theirs).max()
  certify(
    "SDXL UNet of full size at 64×64 latents, against diffusers",
    f"{error:.1e} of the largest value",
    "≤ 1e-3",
    error <= 1e-3,
  )
