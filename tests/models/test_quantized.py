"""Frozen kernels in eight and four bits, on real weights and in a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxpref import config, sharding
from jaxpref.models import huggingface
from jaxpref.models.build import bind, define, init_params
from jaxpref.models.quantized import KINDS, dequantize, quantize, whole_kernel
from jaxpref.ops.attention import padded_attention

# Of normal weights in tiles of 64, a step of int8 is 2.5/127 and its error
# 1/sqrt(12) of that. Measured: 0.006 and 0.094.
ERRORS = {"int8": 0.01, "nf4": 0.12}
# Of logits of up to 19, against float32. Measured: 0.04 and 0.46, the
# largest 0.5 and 5; of weights rounded to bfloat16 0.02 and 0.2.
LOGITS = {"int8": 0.08, "nf4": 0.8}


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_their_scales(kind):
  kernel = jax.random.normal(jax.random.key(0), (3, 128, 4, 8))
  values, scale = quantize(kernel, 1, kind)
  assert values.shape == kernel.shape
  assert values.dtype == {"int8": jnp.int8, "nf4": jnp.uint4}[kind]
  assert scale.shape == (3, 2, 4, 8)
  error = dequantize(values, scale) - kernel
  assert 1e-3 < float(jnp.sqrt(jnp.mean(error**2))) < ERRORS[kind]
  # One layer of a stack is that layer by itself.
  one, its_scale = quantize(kernel[1], 0, kind)
  np.testing.assert_array_equal(one.astype(int), values[1].astype(int))
  np.testing.assert_array_equal(its_scale, scale[1])


def test_tiles_divide_the_inputs():
  """172 = 4 * 43."""
  for shape, axis, scale in (
    ((172, 64), 0, (4, 64)),
    ((8, 8, 64), 1, (8, 1, 64)),
    ((67, 5), 0, (67, 5)),
  ):
    made = quantize(jnp.ones(shape), axis, "nf4")
    assert made[1].shape == scale


@pytest.fixture(scope="module")
def folder(shared):
  return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def logits(folder):
  """logits(kind) -> those of the model, and its parameters."""
  shape = huggingface.read_config(folder)
  tokens = np.random.default_rng(0).integers(3, 512, (3, 100))
  tokens = jnp.asarray(tokens, jnp.int32)
  position = jnp.broadcast_to(jnp.arange(100), tokens.shape)

  def make(kind):
    definition = define(shape, dtype="float32", param_dtype=kind)
    params = huggingface.load_params(folder, definition)

    @jax.jit
    def run(params):
      model = bind(definition, params)
      attend = padded_attention(jnp.ones(tokens.shape, bool))
      return model(tokens, position, attend)[0] @ model.head_kernel()

    return np.asarray(run(params), np.float32), params

  return make


def test_logits_of_real_weights(logits):
  whole, params = logits("float32")
  size = _bytes(params["layers"])
  for kind in KINDS:
    found, quantized = logits(kind)
    error = np.abs(found - whole).mean()
    assert 0.01 < error < LOGITS[kind], kind
    # A byte a weight (jax on CPU gives four bits a byte too) and the scales,
    # many here: heads of 8 channels are tiles of 8.
    assert 0.25 < _bytes(quantized["layers"]) / size < 0.29
    kernel = quantized["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == {"int8": jnp.int8, "nf4": jnp.uint4}[kind]
    norm = quantized["layers"]["mlp_norm"]["scale"]
    assert norm.dtype == quantized["embed"]["table"].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_into_shards(folder, kind):
  """Each device quantizes its part as one alone does."""
  shape = huggingface.read_config(folder)
  definition = define(shape, dtype="float32", param_dtype=kind)
  mesh = sharding.make_mesh(2, 2, 2)
  places = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  apart = huggingface.load_params(folder, definition, places)
  alone = huggingface.load_params(folder, definition)
  for ours, theirs, place in zip(
    *map(jax.tree.leaves, (apart, alone, places)), strict=True
  ):
    assert ours.sharding == place
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(
      np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    )


def test_exports_are_what_trained(folder, tmp_path):
  """The kernels that stand for the quantized ones, with the adapter."""
  shape = huggingface.read_config(folder)
  lora = config.Lora(rank=2, targets="q_proj")
  definition = define(shape, dtype="float32", param_dtype="nf4", lora=lora)
  base = huggingface.load_params(folder, definition.base)
  factors = init_params(definition, jax.random.key(0))
  assert factors["layers"]["attention"]["q"]["lora_b"].dtype == jnp.float32
  layers = {**base["layers"], "attention": dict(base["layers"]["attention"])}
  q = {
    **base["layers"]["attention"]["q"],
    **factors["layers"]["attention"]["q"],
  }
  q["lora_b"] = q["lora_b"] + 0.1
  layers["attention"]["q"] = q
  huggingface.save_pretrained(
    tmp_path / "export", definition, {**base, "layers": layers}
  )
  tensors = load_file(tmp_path / "export" / "model.safetensors")
  assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
  up = whole_kernel(base["layers"]["mlp"]["up"], jnp.bfloat16)
  np.testing.assert_array_equal(
    tensors["model.layers.2.mlp.up_proj.weight"].T.astype(np.float32),
    np.asarray(up[2], np.float32),
  )
  change = 8.0 * q["lora_a"][2] @ q["lora_b"][2].reshape(2, -1)
  merged = np.asarray(whole_kernel(q, jnp.bfloat16)[2], np.float32)
  np.testing.assert_allclose(
    tensors["model.layers.2.self_attn.q_proj.weight"].T.astype(np.float32),
    merged.reshape(64, -1) + np.asarray(change),
    atol=0.02,  # bfloat16
  )


def _bytes(params):
  return sum(x.nbytes for x in jax.tree.leaves(params))
