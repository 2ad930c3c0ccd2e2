"""Attention over causal sequences, and what brings packed rows into them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxpref.types import checked

Attend = Callable[..., tuple[jax.Array, Any]]
"""attend(q, k, v, item) -> (out, item_out), as models call it.

q and out are [rows, tokens, heads, head_dim], k and v have kv_heads; `item` is
what the layer keeps between calls (a cache), None in training.
"""


@checked
def causal_attention(
  q: Float[Array, "sequences length heads head_dim"],
  k: Float[Array, "sequences length kv_heads head_dim"],
  v: Float[Array, "sequences length kv_heads head_dim"],
) -> Float[Array, "sequences length heads head_dim"]:
  """softmax(q k' / sqrt(head_dim)) v, each token seeing itself and the past.

  Heads share keys and values in groups of heads / kv_heads, nothing repeated.
  """
  length = q.shape[1]
  mask = jnp.tril(jnp.ones((length, length), bool))
  return masked_attention(q, k, v, mask[None])


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


def masked_attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B S K D"],
  v: Float[Array, "B S K D"],
  mask: Bool[Array, "#B L S"],
) -> Float[Array, "B L H D"]:
  B, L, H, D = q.shape
  K = k.shape[2]
  q = q.reshape(B, L, K, H // K, D) * jnp.asarray(D**-0.5, q.dtype)
  scores = jnp.einsum(
    "blkgd,bskd->bkgls", q, k, preferred_element_type=jnp.float32
  )
  scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum("bkgls,bskd->blkgd", probs, v).reshape(B, L, H, D)


def _take(
  x: Float[Array, "rows tokens heads head_dim"],
  index: Int32[Array, "rows places"],
) -> Float[Array, "rows places heads head_dim"]:
  return jax.vmap(lambda row, at: row[at])(x, index)
