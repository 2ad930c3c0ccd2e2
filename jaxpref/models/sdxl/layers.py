"""Layers of image models: channels last, statistics in float32."""

import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32

from jaxpref.models.layers import (
  Dtypes,
  Linear,
  Rngs,
  normal,
  ones,
  param,
  zeros,
)
from jaxpref.ops.project import project


class Conv(nnx.Module):
  """A convolution with a square window, zeros around the image.

  Args:
    inputs, outputs: logical axis and size of the channels.
    window: rows and columns of the kernel [window, window, in, out].
    stride: of the outputs.
    padding: rows and columns of zeros before and after the image.
  """

  def __init__(
    self,
    inputs: tuple[str, int],
    outputs: tuple[str, int],
    *,
    window: int = 3,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
    use_bias: bool = True,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    shape = (window, window, inputs[1], outputs[1])
    axes = ("window", "window", inputs[0], outputs[0])
    init = normal(1.0 / math.sqrt(window * window * inputs[1]))
    self.kernel = param(rngs, shape, axes, init, dtypes.params)
    self.bias = (
      param(rngs, outputs[1:], outputs[:1], zeros, dtypes.params)
      if use_bias
      else None
    )
    self.stride, self.padding = stride, padding
    self.dtype = dtypes.compute

  def __call__(
    self, x: Float[Array, "images Y X inputs"]
  ) -> Float[Array, "images _ _ outputs"]:
    kernel = self.kernel[...].astype(self.dtype)
    x = x.astype(self.dtype)
    if kernel.shape[:2] == (1, 1):  # a matrix product, which CPUs do faster
      y = project(x, kernel[0, 0], 1)
    else:
      y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (self.stride, self.stride),
        (self.padding, self.padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    return y if self.bias is None else y + _channels(self.bias, y)


class GroupNorm(nnx.Module):
  """Each image and group of channels to mean 0 and variance 1, then affine."""

  def __init__(
    self,
    size: int,
    *,
    groups: int,
    eps: float,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    self.scale = param(rngs, (size,), ("norm",), ones, dtypes.params)
    self.bias = param(rngs, (size,), ("norm",), zeros, dtypes.params)
    self.groups, self.eps = groups, eps
    self.dtype = dtypes.compute

  def __call__(
    self, x: Float[Array, "images Y X C"]
  ) -> Float[Array, "images Y X C"]:
    images, Y, X, C = x.shape
    grouped = x.reshape(images, Y * X, self.groups, C // self.groups)
    y = _standardize(grouped.astype(jnp.float32), self.eps).reshape(x.shape)
    return _affine(y, self.scale, self.bias).astype(self.dtype)


class LayerNorm(nnx.Module):
  """Each vector to mean 0 and variance 1, then affine."""

  def __init__(self, size: int, *, eps: float, rngs: Rngs, dtypes: Dtypes):
    self.scale = param(rngs, (size,), ("norm",), ones, dtypes.params)
    self.bias = param(rngs, (size,), ("norm",), zeros, dtypes.params)
    self.eps = eps
    self.dtype = dtypes.compute

  def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, -1, keepdims=True)
    var = jnp.mean(centred * centred, -1, keepdims=True)
    y = centred * jax.lax.rsqrt(var + self.eps)
    return _affine(y, self.scale, self.bias).astype(self.dtype)


class TimeEmbedding(nnx.Module):
  """linear_2(silu(linear_1(x + cond_proj(condition))))."""

  def __init__(
    self,
    size: int,
    outputs: int,
    *,
    condition: int | None = None,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    def make(inputs: dict[str, int], to: dict[str, int], bias: bool) -> Linear:
      return Linear(inputs, to, use_bias=bias, rngs=rngs, dtypes=dtypes)

    hidden = {"mlp": outputs}
    self.linear_1 = make({"embed": size}, hidden, True)
    self.linear_2 = make(hidden, {"embed": outputs}, True)
    self.cond_proj = (
      make({"embed": condition}, {"features": size}, False)
      if condition
      else None
    )

  def __call__(
    self,
    x: Float[Array, "images C"],
    condition: Float[Array, "images _"] | None = None,
  ) -> Float[Array, "images T"]:
    if condition is not None:
      if self.cond_proj is None:
        raise ValueError("this model has no time_cond_proj_dim")
      x = x + self.cond_proj(condition)
    return self.linear_2(jax.nn.silu(self.linear_1(x)))


def sinusoids(
  t: Float32[Array, "*items"], size: int, *, flip: bool, shift: float
) -> Float32[Array, "*items size"]:
  """sin and cos (flipped: cos and sin) of t / 10000^(i / (size/2 - shift))."""
  half = size // 2
  exponent = -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32)
  angle = t[..., None] * jnp.exp(exponent / (half - shift)).reshape(
    (1,) * t.ndim + (half,)
  )
  parts = [jnp.sin(angle), jnp.cos(angle)]
  return jnp.concatenate(parts[::-1] if flip else parts, axis=-1)


def upsample(
  x: Float[Array, "images _ _ C"], rows: int, columns: int
) -> Float[Array, "images rows columns C"]:
  """The nearest pixel, counted from the upper left as torch does."""
  images, Y, X, C = x.shape
  if (rows, columns) == (2 * Y, 2 * X):
    x = jnp.broadcast_to(x[:, :, None, :, None], (images, Y, 2, X, 2, C))
    return x.reshape(images, rows, columns, C)
  x = jnp.take(x, jnp.arange(rows) * Y // rows, axis=1)
  return jnp.take(x, jnp.arange(columns) * X // columns, axis=2)


# The derivative is by hand, and each is compiled by itself, which the program
# then calls: a UNet has 46 of them in a dozen shapes, and spelt out they would
# be half of the program that XLA is given.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardize(
  x: Float32[Array, "images pixels groups C"], eps: float
) -> Float32[Array, "images pixels groups C"]:
  """To mean 0 and variance 1 over the pixels and channels of a group."""
  return _standardize_forward(x, eps)[0]


@functools.partial(jax.jit, static_argnums=1)
def _standardize_forward(x: Array, eps: float) -> tuple[Array, Any]:
  centred = x - jnp.mean(x, (1, 3), keepdims=True)
  var = jnp.mean(centred * centred, (1, 3), keepdims=True)
  scale = jax.lax.rsqrt(var + eps)
  y = centred * scale
  return y, (y, scale)


@functools.partial(jax.jit, static_argnums=0)
def _standardize_backward(eps: float, saved: Any, grad: Array) -> tuple[Array]:
  y, scale = saved
  along = jnp.mean(grad * y, (1, 3), keepdims=True)
  mean = jnp.mean(grad, (1, 3), keepdims=True)
  return (scale * (grad - mean - y * along),)


_standardize.defvjp(_standardize_forward, _standardize_backward)


def as_dtypes(dtype: DTypeLike, param_dtype: DTypeLike) -> Dtypes:
  return Dtypes(jnp.dtype(dtype), jnp.dtype(param_dtype))


def _affine(
  y: Float32[Array, "..."], scale: nnx.Param, bias: nnx.Param
) -> Float32[Array, "..."]:
  return y * _channels(scale, y) + _channels(bias, y)


def _channels(weight: nnx.Param, y: jax.Array) -> jax.Array:
  # Explicit, since tests let rank promotion raise.
  return weight[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
