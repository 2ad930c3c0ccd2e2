"""Attention of rows as batches hold them: packed, or padded."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxpref.ops.attention.backends import Attention, sequence_attention
from jaxpref.ops.attention.kind import Attend, Kind, sees
from jaxpref.ops.attention.xla import masked_attention


def packed_attention(
  expand: Sequence[Int32[Array, "rows _ _"]],
  collapse: Int32[Array, "rows tokens"],
  attention: Attention = sequence_attention,
) -> Attend:
  """Attention of packed rows.

  A row's shared tokens are gathered into causal sequences, one a response, and
  what these attend to is gathered back. Gathers stay within a row, so rows may
  be spread over devices freely.

  Args:
    expand: as in `types.TextBatch`.
    collapse: as in `types.TextBatch`.
    attention: of the sequences.
  """

  def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, item: Any, kind: Kind
  ) -> tuple[jax.Array, Any]:
    outs = []
    for index in expand:
      rows, sequences, length = index.shape
      flat = index.reshape(rows, sequences * length)
      split = (rows * sequences, length)
      gathered = (_take(x, flat) for x in (q, k, v))
      parts = [x.reshape(*split, *x.shape[2:]) for x in gathered]
      out = attention(parts[0], parts[1], parts[2], kind)
      outs.append(out.reshape(rows, sequences * length, *q.shape[2:]))
    return _take(jnp.concatenate(outs, axis=1), collapse), item

  return attend


def padded_attention(valid: Bool[Array, "rows tokens"]) -> Attend:
  """Causal attention of one sequence a row, padded on the left or right.

  A padded token sees itself alone, so that nothing becomes NaN.
  """
  place = jnp.arange(valid.shape[1])[None]
  itself = jnp.eye(valid.shape[1], dtype=bool)[None]
  both = valid[:, None, :] & valid[:, :, None]

  def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, item: Any, kind: Kind
  ) -> tuple[jax.Array, Any]:
    seen = (sees(place[..., None], place[:, None], kind.window) & both) | itself
    return masked_attention(q, k, v, seen, kind), item

  return attend


def _take(
  x: Float[Array, "rows tokens heads head_dim"],
  index: Int32[Array, "rows places"],
) -> Float[Array, "rows places heads head_dim"]:
  return jax.vmap(lambda row, at: row[at])(x, index)
