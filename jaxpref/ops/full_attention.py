"""Attention without a mask, as images need it: every place sees all."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpref import sharding
from jaxpref.ops.attention.cudnn import cudnn_lacks
from jaxpref.ops.attention.kind import Kind
from jaxpref.types import checked

Saved = tuple[Array, Array, Array, Array, Array]  # for the backward pass

_BLOCK = 512  # queries whose scores are held at a time


@checked
def full_attention(
  q: Float[Array, "images queries heads head_dim"],
  k: Float[Array, "images places heads head_dim"],
  v: Float[Array, "images places heads head_dim"],
) -> Float[Array, "images queries heads head_dim"]:
  """softmax(q k' / sqrt(head_dim)) v; scores and softmax are float32.

  The backward pass computes the probabilities again, and beyond 1,024 queries
  they go in blocks of up to 512: at 1024² pixels the first level of SDXL with
  attention has 4,096 queries and places, whose scores would take 0.7 GB an
  image and layer. On a mesh of GPUs it is cuDNN's fused kernel, where that can
  compute it.
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
  attend = lambda block: _attend(block, k, v)
  out = jax.lax.map(attend, blocks.swapaxes(0, 1)).swapaxes(0, 1)
  return out.reshape(images, count * block, heads, size)[:, :queries]


# Softmax's sum divides the output rather than each probability, and with a
# derivative by hand nothing of the scores' size is kept (Dao et al. 2022,
# https://arxiv.org/abs/2205.14135, section 3.1 and appendix B).
@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array) -> Array:
  return _forward(q, k, v)[0]


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, Saved]:
  scores = _scores(q, k)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - largest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = _einsum("bhls,bshd->bhld", weights.astype(v.dtype), v) / total
  out = out.swapaxes(1, 2).astype(q.dtype)
  return out, (q, k, v, out, largest + jnp.log(total))


def _backward(saved: Saved, grad: Array) -> tuple[Array, Array, Array]:
  q, k, v, out, log_total = saved
  probs = jnp.exp(_scores(q, k) - log_total)
  along = _einsum("blhd,blhd->bhl", grad, out)[..., None]
  change = probs * (_einsum("blhd,bshd->bhls", grad, v) - along)
  change = (change * q.shape[-1] ** -0.5).astype(q.dtype)
  q_grad = _einsum("bhls,bshd->blhd", change, k)
  k_grad = _einsum("bhls,blhd->bshd", change, q)
  v_grad = _einsum("bhls,blhd->bshd", probs.astype(grad.dtype), grad)
  return q_grad.astype(q.dtype), k_grad.astype(k.dtype), v_grad.astype(v.dtype)


def _scores(q: Array, k: Array) -> Array:
  return _einsum("blhd,bshd->bhls", q, k) * q.shape[-1] ** -0.5


_attend.defvjp(_forward, _backward)
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
