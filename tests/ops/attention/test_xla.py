"""Attention against a plain float64 softmax in NumPy."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jaxpref.ops.attention import (
  Kind,
  causal_attention,
  masked_attention,
  packed_attention,
  padded_attention,
)

PLAIN = Kind(scale=8**-0.5)
# Scores of _inputs reach 3, so that a cap of 1 bends them.
KINDS = {
  "plain": PLAIN,
  "scaled": Kind(scale=0.5),
  "window": Kind(PLAIN.scale, window=40),
  "softcap": Kind(PLAIN.scale, softcap=1.0),
  "both": Kind(PLAIN.scale, window=3, softcap=1.0),
}


def _inputs(sequences, length, heads, kv_heads, head_dim=8, dtype="float32"):
  keys = jax.random.split(jax.random.key(0), 3)
  counts = (heads, kv_heads, kv_heads)
  return tuple(
    jax.random.normal(key, (sequences, length, count, head_dim), dtype)
    for key, count in zip(keys, counts, strict=True)
  )


def _causal(length, window=0, sequences=1):
  i, j = np.indices((length, length))
  seen = (i >= j) & (i - j < (window or length))
  return seen[None].repeat(sequences, 0)


def _reference(q, k, v, seen, kind=PLAIN):
  """One head and one query at a time; `seen` [sequences, queries, keys]."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros(q.shape)
  group = q.shape[2] // k.shape[2]
  for b, i, h in np.ndindex(q.shape[:3]):
    at = seen[b, i]
    scores = kind.scale * k[b, at, h // group] @ q[b, i, h]
    if kind.softcap:
      scores = kind.softcap * np.tanh(scores / kind.softcap)
    probs = np.exp(scores - scores.max())
    out[b, i, h] = probs @ v[b, at, h // group] / probs.sum()
  return out


_causal_attention = jax.jit(causal_attention, static_argnums=3)


# Below, at and above a block, with a last block that is not full; the longest
# has blocks larger than 64.
@pytest.mark.parametrize("length", [1, 5, 64, 65, 150, 530])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_causal_attention(length, heads, kv_heads):
  q, k, v = _inputs(2, length, heads, kv_heads)
  out = _causal_attention(q, k, v, PLAIN)
  expected = _reference(q, k, v, _causal(length, sequences=2))
  np.testing.assert_allclose(out, expected, atol=1e-5)  # measured: 4e-7


@pytest.mark.parametrize("name", list(KINDS))
def test_kinds(name):
  q, k, v = _inputs(1, 150, 4, 2)
  kind = KINDS[name]
  out = _causal_attention(q, k, v, kind)
  seen = _causal(150, kind.window)
  expected = _reference(q, k, v, seen, kind)
  np.testing.assert_allclose(out, expected, atol=1e-5)  # measured: 4e-7
  if name != "plain":
    other = _causal_attention(q, k, v, PLAIN)
    assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize(
  ("length", "name"),
  [(7, "plain"), (64, "plain"), (530, "plain"), *((100, n) for n in KINDS)],
)
def test_causal_gradients(length, name):
  """The backward pass of its own against that of the masked form."""
  q, k, v = _inputs(2, length, 4, 2)
  probe = jax.random.normal(jax.random.key(1), q.shape)
  kind = KINDS[name]
  seen = jnp.asarray(_causal(length, kind.window))

  def grads(attention):
    loss = lambda *qkv: jnp.sum(probe * attention(*qkv, kind))
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

  ours = grads(causal_attention)
  theirs = grads(lambda q, k, v, kind: masked_attention(q, k, v, seen, kind))
  for a, b in zip(ours, theirs, strict=True):
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, atol=3e-5)  # measured: 4e-6


@pytest.mark.parametrize("name", ["plain", "both"])
def test_causal_gradients_are_numerically_right(name):
  inputs = _inputs(1, 6, 2, 1, head_dim=4)
  attention = lambda *qkv: _causal_attention(*qkv, KINDS[name])
  check_grads(attention, inputs, order=1, modes=["rev"], rtol=1e-2)


def test_keys_outside_all_windows_are_not_computed():
  """A window of 64 in 2,048 tokens: an eighth of the work is left."""
  q, k, v = _inputs(1, 2048, 1, 1)

  def flops(window):
    kind = PLAIN._replace(window=window)
    compiled = _causal_attention.lower(q, k, v, kind).compile()
    return compiled.cost_analysis()["flops"]

  # Blocks of 128 queries with 191 keys, against 1,088 on average.
  assert flops(64) < 0.2 * flops(0)


def test_large_scores_do_not_overflow():
  q, k, v = (100.0 * x for x in _inputs(1, 70, 2, 2))
  grad = jax.grad(lambda q: jnp.sum(causal_attention(q, k, v, PLAIN)))(q)
  assert np.isfinite(causal_attention(q, k, v, PLAIN)).all()
  assert np.isfinite(grad).all()


def test_bfloat16_keeps_the_softmax_in_float32():
  q, k, v = _inputs(2, 100, 4, 2, dtype="bfloat16")
  out = causal_attention(q, k, v, PLAIN)
  assert out.dtype == jnp.bfloat16
  expected = _reference(q, k, v, _causal(100, sequences=2))
  # Measured: 5e-3; the last bit of bfloat16 at 2 is 8e-3.
  np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2e-2)


@pytest.mark.parametrize("name", ["plain", "both"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_attention(side, name):
  kind = KINDS[name]
  q, k, v = _inputs(3, 12, 4, 2)
  valid = np.ones((3, 12), bool)
  for row, number in ((1, 4), (2, 12)):
    valid[row, slice(number) if side == "left" else slice(-number, None)] = 0
  out, item = padded_attention(jnp.asarray(valid))(q, k, v, None, kind)
  assert item is None
  assert np.isfinite(out).all()
  seen = _causal(12, kind.window) & valid[:, None, :]
  seen |= np.eye(12, dtype=bool)
  expected = _reference(q, k, v, seen, kind)
  np.testing.assert_allclose(out[valid], expected[valid], atol=1e-5)
  # Padding is not read: other keys there change nothing.
  other = jnp.where(jnp.asarray(valid)[:, :, None, None], k, 9.0)
  again, _ = padded_attention(jnp.asarray(valid))(q, other, v, None, kind)
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
    out, _ = packed_attention(expand, collapse)(q, k, v, None, PLAIN)
    return out

  def single(q, k, v):
    out = jnp.zeros(q.shape)
    for row, index in sequences:
      part = causal_attention(*(x[row, index][None] for x in (q, k, v)), PLAIN)
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
  right, _ = packed_attention(expand, collapse)(*inputs, None, PLAIN)
  wrong = (expand[0], expand[1].at[0, 0, 1].set(3))
  other, _ = packed_attention(wrong, collapse)(*inputs, None, PLAIN)
  assert np.abs(right - other)[0, 3:5].max() > 1e-2
