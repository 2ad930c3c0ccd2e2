"""Adapters of a UNet: diffusers reads ours, and we read diffusers'."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch

from jaxpref.config import Lora
from jaxpref.errors import UserError
from jaxpref.models.build import bind, define, init_params
from jaxpref.models.lora import overlay
from jaxpref.models.quantized import SCALE, whole_kernel
from jaxpref.models.sdxl.lora_file import (
  FILE,
  TARGETS,
  load_lora,
  read_lora,
  save_lora,
)
from jaxpref.models.sdxl.parts import load_part, read_part, save_part

LATENTS = np.random.default_rng(0).normal(size=(1, 6, 4, 4)).astype("f4")
CONTEXT = np.random.default_rng(1).normal(size=(1, 5, 12)).astype("f4")
CLASSES = np.random.default_rng(2).normal(size=(1, 7)).astype("f4")
TIME = np.array([7.0], np.float32)


@pytest.fixture(scope="module")
def ours(make_unet):
  """A UNet, its weights, a definition with an adapter and its factors."""
  _, folder = make_unet("pruned")
  config = read_part(folder)
  lora = Lora(rank=2, alpha=6.0, targets=TARGETS)
  definition = define(config, dtype="float32", lora=lora)
  base = load_part(folder, definition.base)
  factors = init_params(definition, jax.random.key(0))
  rng = np.random.default_rng(3)
  factors = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), factors
  )
  return folder, definition, base, factors


def _torch(model):
  with torch.no_grad():
    out = model(
      torch.tensor(LATENTS).permute(0, 3, 1, 2),
      torch.tensor(TIME),
      torch.tensor(CONTEXT),
      class_labels=torch.tensor(CLASSES),
    ).sample
  return out.permute(0, 2, 3, 1).numpy()


def test_diffusers_reads_ours_and_the_merged_weights(ours, tmp_path):
  folder, definition, base, factors = ours
  forward = jax.jit(
    lambda params, *inputs, classes: bind(definition, params)(
      *inputs, class_labels=classes
    )
  )
  weights = overlay(base, factors)
  mine = forward(weights, LATENTS, TIME, CONTEXT, classes=CLASSES)
  save_lora(tmp_path / "lora", definition, factors)
  model = diffusers.UNet2DConditionModel.from_pretrained(folder)
  plain = _torch(model)
  model.load_lora_adapter(tmp_path / "lora", prefix="unet", weight_name=FILE)
  np.testing.assert_allclose(mine, _torch(model), atol=1e-4)
  assert np.abs(mine - plain).max() > 0.01  # the adapter does something
  save_part(tmp_path / "merged", definition, weights)
  merged = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "merged")
  np.testing.assert_allclose(mine, _torch(merged), atol=1e-4)


def _stands_for(part):
  """Parameters with what quantized kernels stand for, in float32."""
  found = {
    name: _stands_for(each) if isinstance(each, dict) else jnp.float32(each)
    for name, each in part.items()
    if name != SCALE
  }
  if SCALE in part:
    found["kernel"] = whole_kernel(part, jnp.float32)
  return found


def test_over_quantized_weights(ours):
  """Those of the blocks; convolutions stay whole."""
  folder, definition, base, factors = ours
  config, lora = definition.config, definition.lora
  quantized = define(config, dtype="float32", param_dtype="int8", lora=lora)
  small = load_part(folder, quantized.base)
  conv = small["down_blocks"]["1"]["resnets"]["0"]["conv1"]["kernel"]
  assert conv.dtype == jnp.bfloat16
  both = _stands_for(small), base
  for x, y in zip(*map(jax.tree.leaves, both), strict=True):
    np.testing.assert_allclose(x, y, atol=0.02)  # measured: X
  weights = overlay(small, factors)
  run = lambda *inputs, classes: bind(quantized, weights)(
    *inputs, class_labels=classes
  )
  out = jax.eval_shape(run, LATENTS, TIME, CONTEXT, classes=CLASSES)
  assert out.shape == LATENTS.shape


def test_ours_comes_back(ours, tmp_path):
  _, definition, _, factors = ours
  save_lora(tmp_path, definition, factors)
  found = read_lora(tmp_path)
  assert (found.rank, found.alpha, found.rs) == (2, 6.0, False)
  again = define(definition.config, dtype="float32", lora=found)
  assert again.targets == definition.targets
  jax.tree.map(
    np.testing.assert_array_equal, factors, load_lora(tmp_path, again)
  )


@pytest.mark.parametrize("named", ["diffusers", "old", "peft"])
def test_files_of_others_are_read(ours, tmp_path, named):
  folder, definition, _, _ = ours
  model = diffusers.UNet2DConditionModel.from_pretrained(folder)
  settings = peft.LoraConfig(
    r=2,
    lora_alpha=2,
    target_modules=TARGETS.split("|"),
    init_lora_weights=False,
  )
  model.add_adapter(settings)
  state = {}
  for name, tensor in peft.get_peft_model_state_dict(model).items():
    if named == "old":
      name = name.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
    start = "base_model.model." if named == "peft" else "unet."
    state[start + name] = tensor.detach().numpy().copy()
  safetensors.numpy.save_file(state, tmp_path / FILE)
  found = read_lora(tmp_path)
  assert (found.rank, found.alpha) == (2, 2.0)
  again = define(definition.config, dtype="float32", lora=found)
  assert again.targets == definition.targets
  factors = load_lora(tmp_path, again)
  level = factors["down_blocks"]["1"]
  stack = level["attentions"]["0"]["transformer_blocks"]
  a = state[
    next(
      key
      for key in state
      if "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k" in key
      and key.endswith(("lora_A.weight", "lora.down.weight"))
    )
  ]
  np.testing.assert_array_equal(stack["attn2"]["to_k"]["lora_a"][1], a.T)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda t, k: t.pop(k), "is missing from the safetensors"),
    (lambda t, k: t.update({k: t[k][:1]}), "its ranks are|has the shape"),
    (
      lambda t, k: t.update({"unet.conv_in.lora_A.weight": t[k]}),
      "unet.conv_in.lora_A.weight is not supported",
    ),
  ],
  ids=["missing", "rank", "conv"],
)
def test_wrong_tensors_are_named(ours, tmp_path, change, words):
  _, definition, _, factors = ours
  save_lora(tmp_path, definition, factors)
  tensors = safetensors.numpy.load_file(tmp_path / FILE)
  change(tensors, sorted(tensors)[0])
  safetensors.numpy.save_file(tensors, tmp_path / FILE)

  def read():
    config = definition.config
    found = define(config, dtype="float32", lora=read_lora(tmp_path))
    load_lora(tmp_path, found)

  with pytest.raises(UserError, match=words):
    read()


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match=f"{FILE}: there"):
    read_lora(tmp_path)
