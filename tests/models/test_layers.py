"""Layers against hand values; scanned stacks against a plain loop."""

import operator

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from jaxpref.models.layers import (
  Dtypes,
  Linear,
  OffsetRMSNorm,
  RMSNorm,
  Rngs,
  _periods,
  scan_layers,
  stack_layers,
)

FLOAT32 = Dtypes(jnp.dtype("float32"), jnp.dtype("float32"))
MIXED = Dtypes(jnp.dtype("bfloat16"), jnp.dtype("float32"))


def test_keys_are_those_of_nnx():
  ours, theirs = Rngs(params=3), nnx.Rngs(params=3)
  for _ in range(3):
    assert ours.params() == theirs.params()
  key = jax.random.key(3)
  assert Rngs(key).params() == nnx.Rngs(params=key).params()


def test_linear_to_heads_and_back():
  heads = {"heads": 2, "head_dim": 3}
  rngs = Rngs(params=0)
  up = Linear({"embed": 4}, heads, use_bias=True, rngs=rngs, dtypes=FLOAT32)
  down = Linear(heads, {"embed": 4}, use_bias=False, rngs=rngs, dtypes=FLOAT32)
  assert up.kernel.get_metadata()["axes"] == ("embed", "heads", "head_dim")
  assert up.bias.get_metadata()["axes"] == ("heads", "head_dim")
  assert down.bias is None
  up.bias[...] = jnp.arange(6.0).reshape(2, 3)
  x = jnp.arange(8.0).reshape(1, 2, 4)
  flat = np.asarray(x) @ np.asarray(up.kernel[...]).reshape(4, 6) + np.arange(6)
  # One product of four terms: the last bit.
  np.testing.assert_allclose(up(x), flat.reshape(1, 2, 2, 3), rtol=1e-5)
  back = flat @ np.asarray(down.kernel[...]).reshape(6, 4)
  np.testing.assert_allclose(down(up(x)), back, rtol=1e-4)


def test_rms_norm_by_hand():
  norm = RMSNorm(2, eps=0.5, rngs=Rngs(params=0), dtypes=FLOAT32)
  norm.scale[...] = jnp.array([1.0, 10.0])
  out = norm(jnp.array([[1.0, 2.0]]))  # mean square 2.5, and 0.5: sqrt(3)
  np.testing.assert_allclose(out, [[3**-0.5, 20 * 3**-0.5]], rtol=1e-6)


def test_rms_norm_takes_the_mean_in_float32():
  norm = RMSNorm(1000, eps=0.0, rngs=Rngs(params=0), dtypes=MIXED)
  x = jnp.full((1, 1000), 3.0, jnp.bfloat16)
  out = norm(x)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, jnp.ones((1, 1000), jnp.bfloat16))


def test_offset_norm_rounds_last():
  """Bit by bit Gemma's in bfloat16, which Llama's order of rounding is not."""
  theirs = Gemma2RMSNorm(64, eps=1e-6).to(torch.bfloat16)
  rng = np.random.default_rng(0)
  scale = jnp.asarray(rng.normal(size=64), jnp.bfloat16)
  x = jnp.asarray(rng.normal(size=(8, 64)), jnp.bfloat16)
  with torch.no_grad():
    theirs.weight.copy_(torch.tensor(np.asarray(scale, np.float32)))
    given = torch.tensor(np.asarray(x, np.float32)).to(torch.bfloat16)
    expected = theirs(given).float().numpy()
  ours, llama = (
    kind(64, eps=1e-6, rngs=Rngs(params=0), dtypes=MIXED)
    for kind in (OffsetRMSNorm, RMSNorm)
  )
  assert (ours.scale[...] == 0.0).all()
  ours.scale[...] = scale.astype(jnp.float32)
  llama.scale[...] = 1.0 + scale.astype(jnp.float32)
  assert ours(x).dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(ours(x), np.float32), expected)
  assert (np.asarray(llama(x), np.float32) != expected).any()


def _stack(num_layers):
  def make(rngs):
    return Linear(
      {"embed": 4}, {"mlp": 4}, use_bias=True, rngs=rngs, dtypes=FLOAT32
    )

  return stack_layers(make, num_layers, Rngs(params=0))


@pytest.mark.parametrize("remat", ["", "nothing_saveable"])
def test_scanned_is_unrolled(remat):
  stack = _stack(3)
  assert stack.kernel.get_metadata()["axes"] == ("layers", "embed", "mlp")
  x = jnp.ones((2, 4))
  items = jnp.arange(3.0)

  def call(layer, x, item):
    return jnp.tanh(layer(x)) + item, jnp.sum(x)

  out, sums = scan_layers(stack, call, x, items, remat=remat)
  expected, expected_sums = x, []
  for layer in range(3):
    expected_sums.append(jnp.sum(expected))
    kernel, bias = stack.kernel[...][layer], stack.bias[...][layer]
    expected = jnp.tanh(expected @ kernel + bias[None]) + items[layer]
  np.testing.assert_allclose(out, expected, rtol=1e-6)
  np.testing.assert_allclose(sums, jnp.stack(expected_sums), rtol=1e-6)


# All alike; a period and a part of one; two runs; no period. How many layers
# are compiled.
@pytest.mark.parametrize(
  ("kinds", "compiled"), [("aaa", 1), ("aabaaba", 4), ("aaabb", 2), ("ab", 2)]
)
def test_layers_that_differ(kinds, compiled):
  stack = _stack(len(kinds))
  graphdef, params = nnx.split(stack)
  items = jnp.arange(len(kinds), dtype=jnp.float32)
  calls = [{"a": _call_tanh, "b": _call_sin}[kind] for kind in kinds]
  assert sum(len(period) for period, _ in _periods(calls)) == compiled

  def scanned(params, x):
    return scan_layers(nnx.merge(graphdef, params), calls, x, items)

  def plain(params, x):
    outs = []
    for number, call in enumerate(calls):
      part = jax.tree.map(operator.itemgetter(number), params)
      x, out = call(nnx.merge(graphdef, part), x, items[number])
      outs.append(out)
    return x, jnp.stack(outs)

  def value_and_grad(run):
    def total(params, x):
      out, sums = run(params, x)
      return jnp.sum(out), (out, sums)

    x = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
    return jax.jit(jax.value_and_grad(total, has_aux=True))(params, x)

  ours, expected = value_and_grad(scanned), value_and_grad(plain)
  # Measured: 4e-6 of gradients of up to 9.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    ours,
    expected,
  )


def _call_tanh(layer, x, item):
  return jnp.tanh(layer(x)) + item, jnp.sum(x)


def _call_sin(layer, x, item):
  return jnp.sin(layer(x)) * item, jnp.sum(x)
