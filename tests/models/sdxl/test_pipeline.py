"""Whole folders: what diffusers saves is read, and what we save it loads."""

import functools
import json
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.models.sdxl import parts
from jaxpref.models.sdxl import pipeline as module
from jaxpref.models.sdxl.pipeline import (
  StoredParts,
  encode_text,
  load_pipeline,
  open_pipeline,
  save_pipeline,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
MODELS = ["unet", "vae", "text_encoder", "text_encoder_2"]


@pytest.fixture(scope="module", autouse=True)
def _defined_once():
  """A config's model is traced once; most tests open the same folder."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, "define", functools.cache(module.define))
    yield


@pytest.fixture(scope="module")
def saved(shared, make_unet, make_vae, make_text, tmp_path_factory):
  """A tiny SDXL, and where diffusers saved it."""
  tokenizer = transformers.CLIPTokenizer.from_pretrained(
    shared / "models" / "clip-tokenizer"
  )
  pipeline = diffusers.StableDiffusionXLPipeline(
    vae=make_vae[0],
    text_encoder=make_text(False, eos_token_id=2)[0],
    text_encoder_2=make_text(True, hidden_act="gelu", eos_token_id=2)[0],
    tokenizer=tokenizer,
    tokenizer_2=tokenizer,
    unet=make_unet("sdxl")[0],
    scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
  )
  folder = tmp_path_factory.mktemp("pipeline") / "sdxl"
  pipeline.save_pretrained(folder)
  return pipeline, folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy to spoil."""
  return shutil.copytree(saved[1], tmp_path / "sdxl")


def _tensors(folder):
  return {
    path.parent.name: safetensors.numpy.load_file(path)
    for path in sorted(folder.glob("*/*.safetensors"))
  }


def test_diffusers_loads_what_we_save_bit_equal(saved, tmp_path):
  before, folder = saved
  pipeline = open_pipeline(folder)
  assert sorted(pipeline.definitions) == sorted(MODELS)
  assert pipeline.scheduler()["beta_schedule"] == "scaled_linear"
  save_pipeline(tmp_path / "out", pipeline, StoredParts(pipeline))
  after = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "out")
  for name in MODELS:
    old = getattr(before, name).state_dict()
    new = getattr(after, name).state_dict()
    assert old.keys() == new.keys()
    for key, tensor in old.items():
      assert torch.equal(tensor, new[key]), (name, key)
  files = lambda top: {
    str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()
  }
  assert files(folder) == files(tmp_path / "out")


def test_half_precision_variants_and_shards(saved, tmp_path):
  _, folder = saved
  plain, params = load_pipeline(folder, param_dtype="float16")
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float16")}
  save_pipeline(
    tmp_path / "half", plain, params, variant="fp16", max_file_bytes=4000
  )
  assert [*(tmp_path / "half/unet").glob("*.fp16-00001-of-*.safetensors")]
  index = "diffusion_pytorch_model.safetensors.index.fp16.json"
  assert (tmp_path / "half" / "unet" / index).is_file()
  for variant in ("fp16", ""):  # the only one is found by itself
    _, again = load_pipeline(
      tmp_path / "half", param_dtype="float16", variant=variant
    )
    jax.tree.map(np.testing.assert_array_equal, params, again)
  theirs = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path / "half" / "unet", variant="fp16", torch_dtype=torch.float16
  )
  name = "mid_block.attentions.0.transformer_blocks.1.attn2.to_k.weight"
  kernel = params["unet"]["mid_block"]["attentions"]["0"]
  kernel = kernel["transformer_blocks"]["attn2"]["to_k"]["kernel"][1]
  np.testing.assert_array_equal(
    theirs.state_dict()[name].numpy(), np.asarray(kernel).reshape(12, -1).T
  )


def test_shards_go_to_their_devices(saved):
  mesh = sharding.make_mesh(2, 2, 1)
  unet = open_pipeline(saved[1]).definitions["unet"]
  where = sharding.param_shardings(mesh, unet.shapes, unet.axes)
  _, params = load_pipeline(saved[1], {"unet": where})
  kernel = params["unet"]["down_blocks"]["1"]["resnets"]["0"]["conv1"]["kernel"]
  assert tuple(kernel.sharding.spec) == (None, None, "fsdp", "tensor")
  alone = StoredParts(open_pipeline(saved[1]))["unet"]
  jax.tree.map(np.testing.assert_array_equal, params["unet"], alone)


def test_the_context_is_diffusers(saved):
  before, folder = saved
  pipeline, params = load_pipeline(folder)
  with torch.no_grad():
    context, _, pooled, _ = before.encode_prompt(
      "a red fox", device="cpu", do_classifier_free_guidance=False
    )
  ids = before.tokenizer(
    "a red fox", padding="max_length", max_length=77, return_tensors="np"
  )["input_ids"].astype(np.int32)
  ids = {"text_encoder": ids, "text_encoder_2": ids}
  ours, mine = jax.jit(
    lambda p, ids: encode_text(pipeline.definitions, p, ids)
  )(params, ids)
  np.testing.assert_allclose(ours, context.numpy(), atol=1e-4)
  np.testing.assert_allclose(mine, pooled.numpy(), atol=1e-4)


def _edit(path, **changes):
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _cut(path):
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
  ("spoil", "words"),
  [
    (shutil.rmtree, "there is no such folder"),
    (lambda x: (x / "model_index.json").unlink(), "no model_index.json in it"),
    (
      lambda x: _edit(x / "model_index.json", _class_name="FluxPipeline"),
      "_class_name is 'FluxPipeline'; supported are StableDiffusionXL",
    ),
    (
      lambda x: _edit(
        x / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]
      ),
      "unet is a 'UNet3DConditionModel', and unet/config.json describes a",
    ),
    (lambda x: shutil.rmtree(x / "vae"), r"names vae \(AutoencoderKL\), and"),
    (lambda x: (x / "vae/config.json").unlink(), "vae/config.json: there is"),
    (lambda x: _cut(x / "unet" / WEIGHTS), "not a whole safetensors file"),
    (lambda x: (x / "unet" / WEIGHTS).unlink(), "no diffusion_pytorch_model"),
    (
      lambda x: _edit(x / "unet/config.json", cross_attention_dim=16),
      r"attn2.to_k.weight has the shape \[16, 12\]; by config.json it is",
    ),
    (
      lambda x: _edit(x / "unet/config.json", resnet_time_scale_shift="ada"),
      "resnet_time_scale_shift is 'ada', which is not supported",
    ),
    (
      lambda x: _edit(x / "unet/config.json", attention_head_dim=[1, 2, 3]),
      r"attention_head_dim is \[1, 2, 3\], and the model has 2 levels",
    ),
    (
      lambda x: _edit(x / "unet/config.json", down_block_types=["A", "B"]),
      "down_block_types has 'A'; supported are CrossAttnDownBlock2D and",
    ),
    (
      lambda x: _edit(x / "vae/config.json", layers_per_block="two"),
      "layers_per_block is 'two'; it must be int",
    ),
  ],
  ids=[
    "no_folder",
    "no_index",
    "pipeline",
    "class",
    "no_part",
    "no_config",
    "cut",
    "no_weights",
    "shape",
    "refused",
    "levels",
    "blocks",
    "type",
  ],
)
def test_mistakes_are_named(folder, spoil, words):
  spoil(folder)
  with pytest.raises(UserError, match=words):
    open_pipeline(folder)


def test_a_part_of_another_kind_is_named(folder):
  _edit(folder / "unet/config.json", _class_name="VQModel")
  with pytest.raises(UserError, match="class is 'VQModel'; supported are UNet"):
    parts.read_part(folder / "unet")
