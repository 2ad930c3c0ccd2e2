"""Attention of images: in blocks, and by cuDNN where the mesh is of GPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.ops import full_attention as module
from jaxpref.ops.full_attention import full_attention

Q, K, V = (
  jax.random.normal(key, (2, length, 2, 8))
  for key, length in zip(jax.random.split(jax.random.key(0), 3), (11, 5, 5))
)


@pytest.mark.parametrize("block", [4, 16])  # 3 and one query too many; one
def test_equals_the_plain_formula(monkeypatch, block):
  monkeypatch.setattr(module, "_BLOCK", block)

  def loss(attend, *qkv):
    return jnp.sum(attend(*qkv) ** 2)

  graded = jax.value_and_grad(loss, argnums=(1, 2, 3))
  plain = jax.nn.dot_product_attention

  @jax.jit
  def compare(*qkv):
    return [graded(attend, *qkv) for attend in (full_attention, plain)]

  ours, theirs = compare(Q, K, V)
  check = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4)
  jax.tree.map(check, ours, theirs)
  wrong, _ = compare(Q, V, K)
  assert np.abs(wrong[1][0] - theirs[1][0]).max() > 0.01


def test_nothing_of_the_size_of_the_scores_is_kept():
  wide = jnp.concatenate([Q] * 20, 1)
  _, backward = jax.vjp(full_attention, wide, wide, wide)
  kept = [leaf.size for leaf in jax.tree.leaves(backward)]
  assert max(kept, default=0) == wide.size < wide.shape[1] ** 2


@pytest.mark.parametrize(
  ("platform", "dtype", "head_dim", "calls"),
  [
    ("gpu", "bfloat16", 8, ["cudnn"]),
    ("gpu", "float32", 8, []),
    ("gpu", "float16", 6, []),  # it wants multiples of 8
    ("cpu", "bfloat16", 8, []),
  ],
)
def test_the_platform_decides(monkeypatch, platform, dtype, head_dim, calls):
  seen = []

  def fused(q, k, v, *, implementation):
    seen.append(implementation)
    return q

  monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
  monkeypatch.setattr(sharding, "current_platform", lambda: platform)
  jax.eval_shape(
    full_attention, *(x[..., :head_dim].astype(dtype) for x in (Q, K, V))
  )
  assert seen == calls
