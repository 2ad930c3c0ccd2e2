"""Attention over causal sequences, and what brings packed rows into them."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from jaxpref.types import checked

Attend = Callable[..., tuple[jax.Array, Any]]
"""attend(q, k, v, item) -> (out, item_out), as models call it.

q and out are [rows, tokens, heads, head_dim], k and v have kv_heads; `item` is
what the layer keeps between calls (a cache), None in training.
"""

_BLOCK = 32  # queries; measured on CPU as the fastest of 24 to 512
_MAX_BLOCKS = 16  # more would hardly save triangle, but compile longer
_HIDDEN = -1e30  # finite: a row of -inf alone would give NaN


@checked
def causal_attention(
  q: Float[Array, "sequences length heads head_dim"],
  k: Float[Array, "sequences length kv_heads head_dim"],
  v: Float[Array, "sequences length kv_heads head_dim"],
) -> Float[Array, "sequences length heads head_dim"]:
  """softmax(q k' / sqrt(head_dim)) v, each token seeing itself and the past.

  Heads share keys and values in groups of heads / kv_heads, nothing repeated.
  Queries go in blocks, each with the keys up to its end, so that most of the
  upper triangle is never computed; the backward pass computes probabilities
  again instead of keeping them (on CPU 1.5 to 2 times as fast as the plain
  einsums, and less memory). Softmax is float32.
  """
  return _causal(q, k, v)


def packed_attention(
  expand: Sequence[Int32[Array, "rows _ _"]],
  collapse: Int32[Array, "rows tokens"],
) -> Attend:
  """Attention of packed rows; arguments as in `types.TextBatch`.

  Gathers stay within a row, so rows may be spread over devices freely.
  """

  def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, item: Any
  ) -> tuple[jax.Array, Any]:
    outs = []
    for index in expand:
      rows, sequences, length = index.shape
      flat = index.reshape(rows, sequences * length)
      split = (rows * sequences, length)
      parts = (_take(x, flat).reshape(*split, *x.shape[2:]) for x in (q, k, v))
      out = causal_attention(*parts)
      outs.append(out.reshape(rows, sequences * length, *q.shape[2:]))
    return _take(jnp.concatenate(outs, axis=1), collapse), item

  return attend


def padded_attention(valid: Bool[Array, "rows tokens"]) -> Attend:
  """Causal attention of one sequence a row, padded on the left or right.

  A padded token sees itself alone, so that nothing becomes NaN.
  """
  length = valid.shape[1]
  causal = jnp.tril(jnp.ones((1, length, length), bool))
  itself = jnp.eye(length, dtype=bool)[None]
  mask = (causal & valid[:, None, :] & valid[:, :, None]) | itself

  def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, item: Any
  ) -> tuple[jax.Array, Any]:
    return masked_attention(q, k, v, mask), item

  return attend


@checked
def masked_attention(
  q: Float[Array, "rows queries heads head_dim"],
  k: Float[Array, "rows places kv_heads head_dim"],
  v: Float[Array, "rows places kv_heads head_dim"],
  seen: Bool[Array, "rows queries places"],
) -> Float[Array, "rows queries heads head_dim"]:
  """Attention under any mask; each query must see something."""
  q = _group(q, k.shape[2])
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  probs = jax.nn.softmax(_scores(q, k, seen[:, None, None]), axis=-1)
  return _ungroup(_mix(probs, v).astype(q.dtype))


# Below, letters are B sequences, K key-value heads, G query heads of each, L
# queries, S keys, D channels. The matrix products have L and G as one
# dimension, so that each is one product per sequence and key-value head.


@jax.custom_vjp
def _causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  return _causal_forward(q, k, v)[0]


def _causal_forward(
  q_BLHD: jax.Array, k_BLKD: jax.Array, v_BLKD: jax.Array
) -> tuple[jax.Array, Any]:
  q = _group(q_BLHD, k_BLKD.shape[2])
  k, v = k_BLKD.swapaxes(1, 2), v_BLKD.swapaxes(1, 2)
  outs, log_sums = [], []
  for start, stop in _blocks(q.shape[3]):
    at_v = v[:, :, :stop]
    scores = _causal_scores(q, k, start, stop)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    exp = jnp.exp(scores - largest)
    total = jnp.sum(exp, axis=-1, keepdims=True)
    outs.append((_mix(exp, at_v) / total).astype(v.dtype))
    log_sums.append(largest + jnp.log(total))
  out = _ungroup(jnp.concatenate(outs, axis=3))
  kept = (q_BLHD, k_BLKD, v_BLKD, out, jnp.concatenate(log_sums, axis=3))
  return out, kept


def _causal_backward(
  kept: Any, grad_BLHD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  q_BLHD, k_BLKD, v_BLKD, out_BLHD, log_sum = kept
  num_kv, scale = k_BLKD.shape[2], q_BLHD.shape[3] ** -0.5
  q, grad = _group(q_BLHD, num_kv), _group(grad_BLHD, num_kv)
  k, v = k_BLKD.swapaxes(1, 2), v_BLKD.swapaxes(1, 2)
  # What the softmax's gradient subtracts: sum_s p_s (grad . v_s).
  shift = grad.astype(jnp.float32) * _group(out_BLHD, num_kv)
  shift = jnp.sum(shift, axis=-1, keepdims=True)
  q_grads = []
  k_grad = jnp.zeros(k.shape, jnp.float32)
  v_grad = jnp.zeros(v.shape, jnp.float32)
  for start, stop in _blocks(q.shape[3]):
    at = slice(start, stop)
    scores = _causal_scores(q, k, start, stop)
    probs = jnp.exp(scores - log_sum[:, :, :, at])
    probs_grad = _scores_of(grad[:, :, :, at], v[:, :, :stop])
    scores_grad = scale * probs * (probs_grad - shift[:, :, :, at])
    q_grads.append(_mix(scores_grad, k[:, :, :stop]).astype(q.dtype))
    k_part = _mix_back(scores_grad, q[:, :, :, at])
    v_part = _mix_back(probs, grad[:, :, :, at])
    k_grad = k_grad.at[:, :, :stop].add(k_part)
    v_grad = v_grad.at[:, :, :stop].add(v_part)
  return (
    _ungroup(jnp.concatenate(q_grads, axis=3)),
    k_grad.astype(k.dtype).swapaxes(1, 2),
    v_grad.astype(v.dtype).swapaxes(1, 2),
  )


_causal.defvjp(_causal_forward, _causal_backward)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
  size = max(_BLOCK, -(-length // _MAX_BLOCKS))
  return ((at, min(at + size, length)) for at in range(0, length, size))


def _causal_scores(
  q: Float[Array, "B K G L D"],
  k: Float[Array, "B K L D"],
  start: int,
  stop: int,
) -> Float32[Array, "B K G block stop"]:
  seen = jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None]
  return _scores(q[:, :, :, start:stop], k[:, :, :stop], seen[None, None, None])


def _scores(
  q: Float[Array, "B K G L D"],
  k: Float[Array, "B K S D"],
  seen: Bool[Array, "#B 1 1 L S"],
) -> Float32[Array, "B K G L S"]:
  scale = jnp.float32(q.shape[-1] ** -0.5)
  return jnp.where(seen, scale * _scores_of(q, k), _HIDDEN)


def _scores_of(
  q: Float[Array, "B K G L D"], k: Float[Array, "B K S D"]
) -> Float32[Array, "B K G L S"]:
  B, K, G, L, D = q.shape
  scores = _einsum("bkld,bksd->bkls", q.reshape(B, K, G * L, D), k)
  return scores.reshape(B, K, G, L, k.shape[2])


def _mix(
  probs: Float32[Array, "B K G L S"], v: Float[Array, "B K S D"]
) -> Float32[Array, "B K G L D"]:
  B, K, G, L, S = probs.shape
  probs = probs.astype(v.dtype).reshape(B, K, G * L, S)
  return _einsum("bkls,bksd->bkld", probs, v).reshape(B, K, G, L, -1)


def _mix_back(
  probs: Float32[Array, "B K G L S"], x: Float[Array, "B K G L D"]
) -> Float32[Array, "B K S D"]:
  B, K, G, L, S = probs.shape
  probs = probs.astype(x.dtype).reshape(B, K, G * L, S)
  return _einsum("bkls,bkld->bksd", probs, x.reshape(B, K, G * L, -1))


def _group(
  x: Float[Array, "B L H D"], num_kv: int
) -> Float[Array, "B K G L D"]:
  B, L, H, D = x.shape
  return x.reshape(B, L, num_kv, H // num_kv, D).transpose(0, 2, 3, 1, 4)


def _ungroup(x: Float[Array, "B K G L D"]) -> Float[Array, "B L H D"]:
  B, K, G, L, D = x.shape
  return x.transpose(0, 3, 1, 2, 4).reshape(B, L, K * G, D)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _take(
  x: Float[Array, "rows tokens heads head_dim"],
  index: Int32[Array, "rows places"],
) -> Float[Array, "rows places heads head_dim"]:
  return jax.vmap(lambda row, at: row[at])(x, index)
