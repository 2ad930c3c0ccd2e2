"""Attention by splash, the TPU kernel that comes with jax."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpref.ops.attention.kind import Kind
from jaxpref.types import checked

_LANES = 128
_BLOCKS = (512, 384, 256)  # of queries and of keys, in longer sequences


@checked
def splash_attention(
  q: Float[Array, "sequences length heads head_dim"],
  k: Float[Array, "sequences length kv_heads head_dim"],
  v: Float[Array, "sequences length kv_heads head_dim"],
  kind: Kind,
  *,
  interpret: bool = False,
) -> Float[Array, "sequences length heads head_dim"]:
  """`causal_attention` on a TPU; memory grows with the length, not its square.

  Blocks that the causal or the local mask hides are skipped. The sequences are
  padded at their ends, where no token sees the padding, so there are no segment
  ids; `interpret` runs the kernel anywhere, slowly.
  """
  length, heads = q.shape[1:3]
  block = _block(length)
  padding = -length % block
  kernel = _kernel(heads, length + padding, block, kind, interpret)

  def heads_first(x: jax.Array) -> jax.Array:
    ends = ((0, 0), (0, padding), (0, 0), (0, 0))
    return jnp.pad(x, ends).swapaxes(1, 2)

  # The kernel does not scale. One rounding more of q, none where the scale is
  # a power of two.
  q = (kind.scale * q.astype(jnp.float32)).astype(q.dtype)
  out = jax.vmap(kernel)(heads_first(q), heads_first(k), heads_first(v))
  return out.swapaxes(1, 2)[:, :length]


def _block(length: int) -> int:
  """What divides the padded length: the one that pads least, else the largest.

  A short sequence is one block.
  """
  if length <= _BLOCKS[0]:
    return -(-length // _LANES) * _LANES
  return min(_BLOCKS, key=lambda block: -(-length // block) * block)


def _kernel(
  heads: int, length: int, block: int, kind: Kind, interpret: bool
) -> Any:
  # Imported here: half a second that other back ends do without.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  shape = (length, length)
  # What is left of a query, itself not counted, and right of it.
  seen = (kind.window - 1 if kind.window else None, 0)
  mask = splash.LocalMask(shape, seen, offset=0)
  return splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    # Two kernels for the gradient: the one that does all of it keeps q's once a
    # block of keys, which is the square of the length again.
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=kind.softcap or None,
    interpret=interpret,
  )
