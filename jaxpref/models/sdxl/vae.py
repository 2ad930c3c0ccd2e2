"""The autoencoder between pixels and latents.

Outputs are those of diffusers' AutoencoderKL, and layers have its names.
"""

from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32

from jaxpref.models.layers import Dtypes, Rngs
from jaxpref.models.sdxl.blocks import (
  Downsample,
  Residual,
  Upsample,
  checkpointed,
  numbered,
)
from jaxpref.models.sdxl.layers import Conv, GroupNorm, as_dtypes
from jaxpref.models.sdxl.transformer import Attention
from jaxpref.models.sdxl.vae_config import VaeConfig

_EPS = 1e-6


class Moments(NamedTuple):
  """A Gaussian for each latent; unscaled, as the decoder takes them."""

  mean: Any  # float32 [images, Y, X, C]
  logvar: Any


class Vae(nnx.Module):
  """Pixels in [-1, 1] to moments of latents, and latents to pixels.

  Latents here are unscaled; `scale` brings them to the unit variance that the
  UNet works with, `unscale` back. Where the config says `force_upcast`, as
  SDXL's does, all is computed in float32 whatever `dtype`: its activations
  exceed float16 and are too coarse in bfloat16.
  """

  def __init__(
    self,
    config: VaeConfig,
    *,
    rngs: Rngs,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: str,
  ):
    dtypes = as_dtypes("float32" if config.force_upcast else dtype, param_dtype)
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    self.encoder = Encoder(config, remat=remat, **rest)
    self.decoder = Decoder(config, remat=remat, **rest)
    both, one = 2 * config.latent_channels, config.latent_channels
    self.quant_conv = (
      _pointwise(both, **rest) if config.use_quant_conv else None
    )
    self.post_quant_conv = (
      _pointwise(one, **rest) if config.use_post_quant_conv else None
    )
    self.config = config

  def encode(self, pixels: Float[Array, "images Y X 3"]) -> Moments:
    """Y and X are multiples of the config's `factor`."""
    x = self.encoder(pixels)
    if self.quant_conv is not None:
      x = self.quant_conv(x)
    mean, logvar = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return Moments(mean, jnp.clip(logvar, -30.0, 20.0))

  def decode(
    self, latents: Float[Array, "images _ _ C"]
  ) -> Float32[Array, "images Y X 3"]:
    """Pixels, not clipped to [-1, 1]."""
    if self.post_quant_conv is not None:
      latents = self.post_quant_conv(latents)
    return self.decoder(latents).astype(jnp.float32)

  def scale(
    self, latents: Float[Array, "images Y X C"]
  ) -> Float[Array, "images Y X C"]:
    shift = self.config.shift_factor or 0.0
    return (latents - shift) * self.config.scaling_factor

  def unscale(
    self, latents: Float[Array, "images Y X C"]
  ) -> Float[Array, "images Y X C"]:
    shift = self.config.shift_factor or 0.0
    return latents / self.config.scaling_factor + shift


class Encoder(nnx.Module):
  """Pixels to twice the latents' channels, at 1/factor of the size."""

  def __init__(
    self, config: VaeConfig, *, remat: str, rngs: Rngs, dtypes: Dtypes
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    channels, groups = config.block_out_channels, config.norm_num_groups
    self.conv_in = Conv(
      ("image", config.in_channels), ("embed", channels[0]), **rest
    )
    count, last = config.layers_per_block, len(channels) - 1
    self.down_blocks = numbered(
      Level(
        (channels[max(0, i - 1)],) + (size,) * (count - 1),
        size,
        groups=groups,
        down=i < last,
        remat=remat,
        **rest,
      )
      for i, size in enumerate(channels)
    )
    self.mid_block = Middle(config, remat=remat, **rest)
    self.conv_norm_out = GroupNorm(
      channels[-1], groups=groups, eps=_EPS, **rest
    )
    self.conv_out = Conv(
      ("embed", channels[-1]), ("image", 2 * config.latent_channels), **rest
    )

  def __call__(
    self, pixels: Float[Array, "images _ _ 3"]
  ) -> Float[Array, "images Y X C"]:
    x = self.conv_in(pixels)
    for level in self.down_blocks.values():
      x = level(x)
    x = self.mid_block(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
  """Latents to pixels."""

  def __init__(
    self, config: VaeConfig, *, remat: str, rngs: Rngs, dtypes: Dtypes
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    channels, groups = config.block_out_channels[::-1], config.norm_num_groups
    self.conv_in = Conv(
      ("image", config.latent_channels), ("embed", channels[0]), **rest
    )
    self.mid_block = Middle(config, remat=remat, **rest)
    count, last = config.layers_per_block + 1, len(channels) - 1
    self.up_blocks = numbered(
      Level(
        (channels[max(0, i - 1)],) + (size,) * (count - 1),
        size,
        groups=groups,
        up=i < last,
        remat=remat,
        **rest,
      )
      for i, size in enumerate(channels)
    )
    self.conv_norm_out = GroupNorm(
      channels[-1], groups=groups, eps=_EPS, **rest
    )
    self.conv_out = Conv(
      ("embed", channels[-1]), ("image", config.out_channels), **rest
    )

  def __call__(
    self, latents: Float[Array, "images Y X C"]
  ) -> Float[Array, "images _ _ 3"]:
    x = self.mid_block(self.conv_in(latents))
    for level in self.up_blocks.values():
      x = level(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Level(nnx.Module):
  """Residual blocks of one resolution, then a change of it."""

  def __init__(
    self,
    inputs: tuple[int, ...],
    channels: int,
    *,
    groups: int,
    down: bool = False,
    up: bool = False,
    remat: str,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    self.resnets = numbered(
      Residual(size, channels, time=None, groups=groups, eps=_EPS, **rest)
      for size in inputs
    )
    after = (0, 1)  # zeros after the image only
    self.downsamplers = numbered(
      Downsample(channels, padding=after, **rest) for _ in range(down)
    )
    self.upsamplers = numbered(Upsample(channels, **rest) for _ in range(up))
    self.remat = remat

  def __call__(
    self, x: Float[Array, "images _ _ inputs"]
  ) -> Float[Array, "images Y X C"]:
    for residual in self.resnets.values():
      x = checkpointed(residual, self.remat)(x, None)
    for layer in self.downsamplers.values():
      x = layer(x)
    for layer in self.upsamplers.values():
      x = layer(x, 2 * x.shape[1], 2 * x.shape[2])
    return x


class Middle(nnx.Module):
  """A residual block, attention of one head, a residual block."""

  def __init__(
    self, config: VaeConfig, *, remat: str, rngs: Rngs, dtypes: Dtypes
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    size, groups = config.block_out_channels[-1], config.norm_num_groups
    make = lambda: Residual(
      size, size, time=None, groups=groups, eps=_EPS, **rest
    )
    attended = range(config.mid_block_add_attention)
    self.resnets = numbered(make() for _ in range(2))
    self.attentions = numbered(
      ImageAttention(size, groups=groups, **rest) for _ in attended
    )
    self.remat = remat

  def __call__(
    self, x: Float[Array, "images Y X C"]
  ) -> Float[Array, "images Y X C"]:
    x = checkpointed(self.resnets["0"], self.remat)(x, None)
    for layer in self.attentions.values():
      x = layer(x)
    return checkpointed(self.resnets["1"], self.remat)(x, None)


class ImageAttention(Attention):
  """x + attention(norm(x)) among all pixels."""

  def __init__(self, channels: int, *, groups: int, rngs: Rngs, dtypes: Dtypes):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    super().__init__(channels, heads=1, context=channels, use_bias=True, **rest)
    self.group_norm = GroupNorm(channels, groups=groups, eps=_EPS, **rest)

  def __call__(  # type: ignore[override]
    self, x: Float[Array, "images Y X C"]
  ) -> Float[Array, "images Y X C"]:
    images, Y, X, C = x.shape
    pixels = self.group_norm(x).reshape(images, Y * X, C)
    return x + super().__call__(pixels, pixels).reshape(x.shape)


def _pointwise(channels: int, *, rngs: Rngs, dtypes: Dtypes) -> Conv:
  return Conv(
    ("image", channels),
    ("image", channels),
    window=1,
    padding=(0, 0),
    rngs=rngs,
    dtypes=dtypes,
  )
