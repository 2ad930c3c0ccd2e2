"""Attention by cuDNN, through jax.nn."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpref.ops.attention.kind import Kind
from jaxpref.types import checked


@checked
def cudnn_attention(
  q: Float[Array, "sequences length heads head_dim"],
  k: Float[Array, "sequences length kv_heads head_dim"],
  v: Float[Array, "sequences length kv_heads head_dim"],
  kind: Kind,
  *,
  implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "sequences length heads head_dim"]:
  """`causal_attention` on an NVIDIA GPU, where `cudnn_lacks` nothing.

  `implementation` is that of `jax.nn.dot_product_attention`; 'xla' does the
  same anywhere, with all scores in memory.
  """
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    scale=kind.scale,
    is_causal=True,
    # How far to the left, the token itself not counted.
    local_window_size=(kind.window - 1, 0) if kind.window else None,
    implementation=implementation,
  )


def cudnn_lacks(dtype: jnp.dtype, head_dim: int, kind: Kind) -> str:
  """Why cuDNN cannot do this, '' where it can."""
  largest = _largest_head_dim()
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"it computes in bfloat16 or float16, not in {jnp.dtype(dtype).name}"
  if head_dim > largest or head_dim % 8:
    return (
      f"its heads have up to {largest} channels, in multiples of 8, and these "
      f"have {head_dim}"
    )
  if kind.softcap:
    return f"it has no soft-cap, and the model's is {kind.softcap:g}"
  return ""


def _largest_head_dim() -> int:
  """256 from Hopper on."""
  capability = getattr(jax.devices()[0], "compute_capability", "0.0")
  return 256 if float(capability) >= 9.0 else 128
