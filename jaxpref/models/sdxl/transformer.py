"""The transformer between residual blocks: tokens are pixels.

Names of layers are diffusers', so that paths tell tensors' names.
"""

import functools
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Float

from jaxpref.models.layers import (
  Dtypes,
  Linear,
  Rngs,
  scan_layers,
  stack_layers,
)
from jaxpref.models.sdxl.layers import Conv, GroupNorm, LayerNorm
from jaxpref.ops.full_attention import full_attention
from jaxpref.sharding import constrain


class Transformer(nnx.Module):
  """x + proj_out(blocks(proj_in(norm(x)))), the blocks scanned."""

  def __init__(
    self,
    channels: int,
    *,
    depth: int,
    heads: int,
    context: int,
    groups: int,
    linear: bool,
    remat: str,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    self.norm = GroupNorm(channels, groups=groups, eps=1e-6, **rest)
    self.proj_in = _projection(channels, "embed", "features", linear, **rest)
    block = functools.partial(
      Block, channels, heads=heads, context=context, dtypes=dtypes
    )
    self.transformer_blocks = stack_layers(block, depth, rngs)
    self.proj_out = _projection(channels, "features", "embed", linear, **rest)
    self.remat = remat

  def __call__(
    self,
    x: Float[Array, "images Y X C"],
    context: Float[Array, "images tokens D"],
  ) -> Float[Array, "images Y X C"]:
    tokens = self.proj_in(self.norm(x))
    images, Y, X, C = tokens.shape
    tokens = tokens.reshape(images, Y * X, C)

    def call(
      block: Block, tokens: jax.Array, item: None
    ) -> tuple[jax.Array, None]:
      return block(tokens, context), item

    tokens, _ = scan_layers(
      self.transformer_blocks, call, tokens, remat=self.remat
    )
    return x + self.proj_out(tokens.reshape(images, Y, X, C))


class Block(nnx.Module):
  """x + self-attention, + attention to the context, + feed-forward."""

  def __init__(
    self,
    channels: int,
    *,
    heads: int,
    context: int,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    self.norm1 = LayerNorm(channels, eps=1e-5, **rest)
    self.attn1 = Attention(channels, heads=heads, context=channels, **rest)
    self.norm2 = LayerNorm(channels, eps=1e-5, **rest)
    self.attn2 = Attention(channels, heads=heads, context=context, **rest)
    self.norm3 = LayerNorm(channels, eps=1e-5, **rest)
    self.ff = FeedForward(channels, **rest)

  def __call__(
    self,
    x: Float[Array, "images pixels C"],
    context: Float[Array, "images tokens D"],
  ) -> Float[Array, "images pixels C"]:
    x = constrain(x, ("batch", "length", "act_embed"))
    normed = self.norm1(x)
    x = x + self.attn1(normed, normed)
    x = x + self.attn2(self.norm2(x), context)
    return x + self.ff(self.norm3(x))


class Attention(nnx.Module):
  """Pixels attend to `context`; all of it is seen."""

  def __init__(
    self,
    channels: int,
    *,
    heads: int,
    context: int,
    rngs: Rngs,
    dtypes: Dtypes,
    use_bias: bool = False,
  ):
    make = functools.partial(Linear, rngs=rngs, dtypes=dtypes)
    axis = "heads" if heads > 1 else "features"  # the VAE has one: not cut
    split = {axis: heads, "head_dim": channels // heads}
    self.to_q = make({"embed": channels}, split, use_bias=use_bias)
    self.to_k = make({"embed": context}, split, use_bias=use_bias)
    self.to_v = make({"embed": context}, split, use_bias=use_bias)
    self.to_out = make(split, {"embed": channels}, use_bias=True)

  def __call__(
    self,
    x: Float[Array, "images pixels C"],
    context: Float[Array, "images tokens D"],
  ) -> Float[Array, "images pixels C"]:
    q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
    return self.to_out(full_attention(q, k, v))


class FeedForward(nnx.Module):
  """out(a * gelu(b)), a and b the halves of the first projection."""

  def __init__(self, channels: int, *, rngs: Rngs, dtypes: Dtypes):
    make = functools.partial(Linear, use_bias=True, rngs=rngs, dtypes=dtypes)
    hidden = {"mlp": 4 * channels}
    # Halves apart, so that each is cut over devices alike.
    self.into = make({"embed": channels}, {"halves": 2, **hidden})
    self.out = make(hidden, {"embed": channels})

  def __call__(
    self, x: Float[Array, "images pixels C"]
  ) -> Float[Array, "images pixels C"]:
    both = self.into(x)
    gate = jax.nn.gelu(both[..., 1, :], approximate=False)
    return self.out(both[..., 0, :] * gate)


def _projection(
  channels: int,
  axis: str,
  to: str,
  linear: bool,
  *,
  rngs: Rngs,
  dtypes: Dtypes,
) -> Linear | Conv:
  if linear:
    return Linear(
      {axis: channels},
      {to: channels},
      use_bias=True,
      rngs=rngs,
      dtypes=dtypes,
    )
  return Conv(
    (axis, channels),
    (to, channels),
    window=1,
    padding=(0, 0),
    rngs=rngs,
    dtypes=dtypes,
  )
