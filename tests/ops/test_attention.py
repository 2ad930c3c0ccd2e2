"""Attention against a plain float64 softmax in NumPy."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jaxpref.ops.attention import (
  causal_attention,
  masked_attention,
  packed_attention,
  padded_attention,
)


def _inputs(sequences, length, heads, kv_heads, head_dim=8, dtype="float32"):
  keys = jax.random.split(jax.random.key(0), 3)
  counts = (heads, kv_heads, kv_heads)
  return tuple(
    jax.random.normal(key, (sequences, length, count, head_dim), dtype)
    for key, count in zip(keys, counts, strict=True)
  )


def _reference(q, k, v, seen):
  """One head and one query at a time; `seen` [sequences, queries, keys]."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros(q.shape)
  group = q.shape[2] // k.shape[2]
  for b, i, h in np.ndindex(q.shape[:3]):
    at = seen[b, i]
    scores = k[b, at, h // group] @ q[b, i, h] / np.sqrt(q.shape[3])
    probs = np.exp(scores - scores.max())
    out[b, i, h] = probs @ v[b, at, h // group] / probs.sum()
  return out


# Below, at and above a block, with a last block that is not full; the longest
# has blocks larger than 64.
@pytest.mark.parametrize("length", [1, 5, 64, 65, 150, 530])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_causal_attention(length, heads, kv_heads):
  q, k, v = _inputs(2, length, heads, kv_heads)
  seen = np.tril(np.ones((length, length), bool))[None].repeat(2, 0)
  out = jax.jit(causal_attention)(q, k, v)
  # Measured: 4e-7.
  np.testing.assert_allclose(out, _reference(q, k, v, seen), atol=1e-5)


@pytest.mark.parametrize("length", [7, 64, 100, 530])
def test_causal_gradients(length):
  """The backward pass of its own against that of the masked form."""
  q, k, v = _inputs(2, length, 4, 2)
  probe = jax.random.normal(jax.random.key(1), q.shape)
  seen = jnp.tril(jnp.ones((1, length, length), bool)).repeat(2, 0)

  def grads(attention):
    loss = lambda *qkv: jnp.sum(probe * attention(*qkv))
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

  ours = grads(causal_attention)
  theirs = grads(lambda q, k, v: masked_attention(q, k, v, seen))
  for a, b in zip(ours, theirs, strict=True):
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, atol=3e-5)  # measured: 4e-6


def test_causal_gradients_are_numerically_right():
  inputs = _inputs(1, 6, 2, 1, head_dim=4)
  attention = jax.jit(causal_attention)  # which turns NumPy into arrays
  check_grads(attention, inputs, order=1, modes=["rev"], rtol=1e-2)


def test_large_scores_do_not_overflow():
  q, k, v = (100.0 * x for x in _inputs(1, 70, 2, 2))
  grad = jax.grad(lambda q: jnp.sum(causal_attention(q, k, v)))(q)
  assert np.isfinite(causal_attention(q, k, v)).all()
  assert np.isfinite(grad).all()


def test_bfloat16_keeps_the_softmax_in_float32():
  q, k, v = _inputs(2, 100, 4, 2, dtype="bfloat16")
  out = causal_attention(q, k, v)
  assert out.dtype == jnp.bfloat16
  seen = np.tril(np.ones((100, 100), bool))[None].repeat(2, 0)
  expected = _reference(q, k, v, seen)
  # Measured: 5e-3; the last bit of bfloat16 at 2 is 8e-3.
  np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2e-2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_attention(side):
  q, k, v = _inputs(3, 12, 4, 2)
  valid = np.ones((3, 12), bool)
  for row, number in ((1, 4), (2, 12)):
    valid[row, slice(number) if side == "left" else slice(-number, None)] = 0
  out, item = padded_attention(jnp.asarray(valid))(q, k, v, None)
  assert item is None
  assert np.isfinite(out).all()
  seen = np.tril(np.ones((12, 12), bool)) & valid[:, None, :]
  seen |= np.eye(12, dtype=bool)
  expected = _reference(q, k, v, seen)
  np.testing.assert_allclose(out[valid], expected[valid], atol=1e-5)
  # Padding is not read: other keys there change nothing.
  other = jnp.where(jnp.asarray(valid)[:, :, None, None], k, 9.0)
  again, _ = padded_attention(jnp.asarray(valid))(q, other, v, None)
  np.testing.assert_array_equal(out[valid], again[valid])


def _tree():
  """Rows of 8: a prompt of 3 with responses of 2 and 3; one sequence of 6."""
  long = np.zeros((2, 2, 6), np.int32)
  long[0, 0] = [0, 1, 2, 5, 6, 7]
  long[1, 0] = range(6)
  short = np.zeros((2, 1, 5), np.int32)
  short[0, 0] = [0, 1, 2, 3, 4]
  collapse = np.array(
    [[0, 1, 2, 15, 16, 3, 4, 5], [0, 1, 2, 3, 4, 5, 0, 0]], np.int32
  )
  sequences = [(0, long[0, 0]), (0, short[0, 0]), (1, long[1, 0])]
  expand = (jnp.asarray(long), jnp.asarray(short))
  return expand, jnp.asarray(collapse), sequences


def test_packed_attention_is_that_of_single_sequences():
  expand, collapse, sequences = _tree()
  inputs = _inputs(2, 8, 4, 2)
  probe = jax.random.normal(jax.random.key(2), (2, 8, 4, 8))
  used = np.zeros((2, 8, 1, 1), bool)

  def packed(q, k, v):
    out, _ = packed_attention(expand, collapse)(q, k, v, None)
    return out

  def single(q, k, v):
    out = jnp.zeros(q.shape)
    for row, index in sequences:
      part = causal_attention(*(x[row, index][None] for x in (q, k, v)))
      out = out.at[row, index].set(part[0])
    return out

  for row, index in sequences:
    used[row, index] = True

  def grads(attention):
    loss = lambda *qkv: jnp.sum(jnp.where(used, probe * attention(*qkv), 0.0))
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)

  ours, theirs = jax.jit(packed)(*inputs), jax.jit(single)(*inputs)
  used_tokens = used[..., 0, 0]
  # Measured: 6e-8, and 5e-7 for gradients.
  np.testing.assert_allclose(ours[used_tokens], theirs[used_tokens], atol=1e-5)
  for a, b in zip(grads(packed), grads(single), strict=True):
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_packed_attention_with_a_wrong_index_differs():
  expand, collapse, _ = _tree()
  inputs = _inputs(2, 8, 4, 2)
  right, _ = packed_attention(expand, collapse)(*inputs, None)
  wrong = (expand[0], expand[1].at[0, 0, 1].set(3))
  other, _ = packed_attention(wrong, collapse)(*inputs, None)
  assert np.abs(right - other)[0, 3:5].max() > 1e-2
