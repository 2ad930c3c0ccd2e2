"""The splash kernel, interpreted, against the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.ops.attention import (
  Kind,
  causal_attention,
  splash,
  splash_attention,
)


def test_several_blocks(monkeypatch):
  """Blocks that the window hides, some that it cuts, and a padded end."""
  monkeypatch.setattr(splash, "_BLOCKS", (128,))
  kind = Kind(scale=0.35, window=100, softcap=2.0)
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(1, 300, heads, 8) for heads in (2, 1, 1, 2)]
  *qkv, probe = (jax.random.normal(*pair) for pair in zip(keys, shapes))

  def grads(attention, kind):
    total = lambda *qkv: jnp.sum(probe * attention(*qkv, kind))
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*qkv)

  total, ours = grads(functools.partial(splash_attention, interpret=True), kind)
  expected, theirs = grads(causal_attention, kind)
  # Measured: 8e-6 of 40.
  np.testing.assert_allclose(total, expected, atol=1e-4)
  for a, b in zip(ours, theirs, strict=True):
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, atol=1e-5)  # measured: 7e-7
  other = grads(causal_attention, kind._replace(window=101))[1]
  assert max(np.abs(a - b).max() for a, b in zip(ours, other)) > 1e-2


@pytest.mark.parametrize(
  ("length", "block"),
  [(1, 128), (128, 128), (129, 256), (512, 512), (513, 384), (900, 512),
   (1100, 384), (2048, 512), (32768, 512)],
)  # fmt: skip
def test_block(length, block):
  """Little padding first, then a large block."""
  assert splash._block(length) == block
