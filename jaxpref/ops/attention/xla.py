"""Attention in plain XLA: the form that runs anywhere."""

from collections.abc import Iterator
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from jaxpref.ops.attention.kind import Kind, sees
from jaxpref.types import checked

_BLOCK = 32  # queries; measured on CPU as the fastest of 24 to 512
_MAX_BLOCKS = 16  # more would hardly save triangle, but compile longer
_HIDDEN = -1e30  # finite: a row of -inf alone would give NaN


@checked
def causal_attention(
  q: Float[Array, "sequences length heads head_dim"],
  k: Float[Array, "sequences length kv_heads head_dim"],
  v: Float[Array, "sequences length kv_heads head_dim"],
  kind: Kind,
) -> Float[Array, "sequences length heads head_dim"]:
  """softmax(scale q k') v, each token seeing itself and the past.

  Heads share keys and values in groups of heads / kv_heads, nothing repeated.
  Queries go in blocks, each with the keys up to its end and from the start of
  its first query's window, so that most of what is hidden is never computed;
  the backward pass computes probabilities again instead of keeping them (on
  CPU 1.5 to 2 times as fast as the plain einsums, and less memory). Softmax is
  float32.
  """
  return _causal(q, k, v, kind)


@checked
def masked_attention(
  q: Float[Array, "rows queries heads head_dim"],
  k: Float[Array, "rows places kv_heads head_dim"],
  v: Float[Array, "rows places kv_heads head_dim"],
  seen: Bool[Array, "#rows queries places"],
  kind: Kind,
) -> Float[Array, "rows queries heads head_dim"]:
  """Attention under any mask, in which each query must see something.

  The mask is the caller's, and so is the window of `kind` in it.
  """
  q = _group(q, k.shape[2])
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  scores = _scores(q, k, seen[:, None, None], kind)
  probs = jax.nn.softmax(scores, axis=-1)
  return _ungroup(_mix(probs, v).astype(q.dtype))


# Below, letters are B sequences, K key-value heads, G query heads of each, L
# queries, S keys, D channels. The matrix products have L and G as one
# dimension, so that each is one product per sequence and key-value head.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _causal(q: jax.Array, k: jax.Array, v: jax.Array, kind: Kind) -> jax.Array:
  return _causal_forward(q, k, v, kind)[0]


def _causal_forward(
  q_BLHD: jax.Array, k_BLKD: jax.Array, v_BLKD: jax.Array, kind: Kind
) -> tuple[jax.Array, Any]:
  q = _group(q_BLHD, k_BLKD.shape[2])
  k, v = k_BLKD.swapaxes(1, 2), v_BLKD.swapaxes(1, 2)
  outs, log_sums = [], []
  for block in _blocks(q.shape[3], kind.window):
    scores = _block_scores(q, k, block, kind)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    exp = jnp.exp(scores - largest)
    total = jnp.sum(exp, axis=-1, keepdims=True)
    outs.append((_mix(exp, v[:, :, block.keys]) / total).astype(v.dtype))
    log_sums.append(largest + jnp.log(total))
  out = _ungroup(jnp.concatenate(outs, axis=3))
  kept = (q_BLHD, k_BLKD, v_BLKD, out, jnp.concatenate(log_sums, axis=3))
  return out, kept


def _causal_backward(
  kind: Kind, kept: Any, grad_BLHD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  q_BLHD, k_BLKD, v_BLKD, out_BLHD, log_sum = kept
  num_kv = k_BLKD.shape[2]
  q, grad = _group(q_BLHD, num_kv), _group(grad_BLHD, num_kv)
  k, v = k_BLKD.swapaxes(1, 2), v_BLKD.swapaxes(1, 2)
  # What the softmax's gradient subtracts: sum_s p_s (grad . v_s).
  shift = grad.astype(jnp.float32) * _group(out_BLHD, num_kv)
  shift = jnp.sum(shift, axis=-1, keepdims=True)
  q_grads = []
  k_grad = jnp.zeros(k.shape, jnp.float32)
  v_grad = jnp.zeros(v.shape, jnp.float32)
  for block in _blocks(q.shape[3], kind.window):
    at, keys = block.queries, block.keys
    scores = _block_scores(q, k, block, kind)
    probs = jnp.exp(scores - log_sum[:, :, :, at])
    probs_grad = _scores_of(grad[:, :, :, at], v[:, :, keys])
    scores_grad = probs * (probs_grad - shift[:, :, :, at])
    scores_grad = scores_grad * _scores_slope(scores, kind)
    q_grads.append(_mix(scores_grad, k[:, :, keys]).astype(q.dtype))
    k_part = _mix_back(scores_grad, q[:, :, :, at])
    v_part = _mix_back(probs, grad[:, :, :, at])
    k_grad = k_grad.at[:, :, keys].add(k_part)
    v_grad = v_grad.at[:, :, keys].add(v_part)
  return (
    _ungroup(jnp.concatenate(q_grads, axis=3)),
    k_grad.astype(k.dtype).swapaxes(1, 2),
    v_grad.astype(v.dtype).swapaxes(1, 2),
  )


_causal.defvjp(_causal_forward, _causal_backward)


class _Block(NamedTuple):
  """Queries, and all keys that any of them sees."""

  queries: slice
  keys: slice


def _blocks(length: int, window: int) -> Iterator[_Block]:
  size = max(_BLOCK, -(-length // _MAX_BLOCKS))
  for start in range(0, length, size):
    stop = min(start + size, length)
    first = max(0, start + 1 - window) if window else 0
    yield _Block(slice(start, stop), slice(first, stop))


def _block_scores(
  q: Float[Array, "B K G L D"],
  k: Float[Array, "B K L D"],
  block: _Block,
  kind: Kind,
) -> Float32[Array, "B K G block keys"]:
  query, key = (jnp.arange(part.start, part.stop) for part in block)
  seen = sees(query[:, None], key[None], kind.window)[None, None, None]
  return _scores(q[:, :, :, block.queries], k[:, :, block.keys], seen, kind)


def _scores(
  q: Float[Array, "B K G L D"],
  k: Float[Array, "B K S D"],
  seen: Bool[Array, "#B 1 1 L S"],
  kind: Kind,
) -> Float32[Array, "B K G L S"]:
  scores = kind.scale * _scores_of(q, k)
  if kind.softcap:
    scores = kind.softcap * jnp.tanh(scores / kind.softcap)
  return jnp.where(seen, scores, _HIDDEN)


def _scores_slope(
  scores: Float32[Array, "B K G L S"], kind: Kind
) -> Float32[Array, "B K G L S"] | float:
  """The derivative of `_scores` by q·k; anything where they are hidden."""
  if not kind.softcap:
    return kind.scale
  # At least -1, which is 0 in the end: of _HIDDEN, whose square is infinite.
  tanh = jnp.maximum(scores / kind.softcap, -1.0)
  return kind.scale * (1.0 - tanh * tanh)


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
