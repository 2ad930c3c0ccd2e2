"""Attention without a mask, as images need it: every place sees all."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpref import sharding
from jaxpref.ops.attention.cudnn import cudnn_lacks
from jaxpref.ops.attention.kind import Kind
from jaxpref.types import checked

_BLOCK = 512  # queries whose scores are held at a time


@checked
def full_attention(
  q: Float[Array, "images queries heads head_dim"],
  k: Float[Array, "images places heads head_dim"],
  v: Float[Array, "images places heads head_dim"],
) -> Float[Array, "images queries heads head_dim"]:
  """softmax(q k' / sqrt(head_dim)) v; scores and softmax are float32.

  Beyond 1,024 queries they go in blocks of up to 512, and the backward pass
  computes each block's probabilities again: at 1024² pixels the first level of
  SDXL with attention has 4,096 queries and places, whose scores would take 0.7
  GB an image and layer. On a mesh of GPUs it is cuDNN's fused kernel, where
  that can compute it.
  """
  lacks = cudnn_lacks(q.dtype, q.shape[3], Kind(scale=q.shape[3] ** -0.5))
  if sharding.current_platform() == "gpu" and not lacks:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  images, queries, heads, size = q.shape
  if queries <= 2 * _BLOCK:
    return _attend(q, k, v)
  count = -(-queries // _BLOCK)
  block = -(-queries // count)  # so that there are fewer than `count` too many
  padding = ((0, 0), (0, count * block - queries), (0, 0), (0, 0))
  blocks = jnp.pad(q, padding).reshape(images, count, block, heads, size)
  attend = jax.checkpoint(lambda block: _attend(block, k, v))
  out = jax.lax.map(attend, blocks.swapaxes(0, 1)).swapaxes(0, 1)
  return out.reshape(images, count * block, heads, size)[:, :queries]


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  scores = _einsum("blhd,bshd->bhls", q, k) * q.shape[-1] ** -0.5
  probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return _einsum("bhls,bshd->blhd", probs, v).astype(q.dtype)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
