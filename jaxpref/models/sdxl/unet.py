"""The UNet of Stable Diffusion.

References: Rombach et al. 2022 (https://arxiv.org/abs/2112.10752), Podell et
al. 2023 (https://arxiv.org/abs/2307.01952); outputs are those of diffusers'
UNet2DConditionModel, and layers have its names.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32

from jaxpref.models.layers import Dtypes, Embed, Linear, Rngs
from jaxpref.models.sdxl.blocks import (
  Downsample,
  Residual,
  Upsample,
  checkpointed,
  numbered,
)
from jaxpref.models.sdxl.config import Level, UNetConfig
from jaxpref.models.sdxl.layers import (
  Conv,
  GroupNorm,
  TimeEmbedding,
  as_dtypes,
  sinusoids,
)
from jaxpref.models.sdxl.transformer import Transformer

Added = Mapping[str, jax.Array]
"""SDXL's conditions beside the context: `text_embeds` [images, P], pooled, and
`time_ids` [images, 6], float32: original height and width, crop's top and
left, target height and width (the refiner has 5)."""


class UNet(nnx.Module):
  """Noisy latents to what the model predicts: noise, velocity or latents."""

  def __init__(
    self,
    config: UNetConfig,
    *,
    rngs: Rngs,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: str,
  ):
    dtypes = as_dtypes(dtype, param_dtype)
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    first = config.block_out_channels[0]
    self.conv_in = Conv(("image", config.in_channels), ("embed", first), **rest)
    self.time_embedding = TimeEmbedding(
      first, config.time_dim, condition=config.time_cond_proj_dim, **rest
    )
    self.class_embedding = _class_embedding(config, **rest)
    self.add_embedding = (
      TimeEmbedding(
        config.projection_class_embeddings_input_dim or 0,
        config.time_dim,
        **rest,
      )
      if config.addition_embed_type
      else None
    )
    make = lambda level, way: Stage(config, level, way, remat=remat, **rest)
    self.down_blocks = numbered([make(x, "down") for x in config.down()])
    middle = config.middle()
    self.mid_block = make(middle, "") if middle else None
    self.up_blocks = numbered([make(x, "up") for x in config.up()])
    self.conv_norm_out = GroupNorm(
      first, groups=config.norm_num_groups, eps=config.norm_eps, **rest
    )
    self.conv_out = Conv(
      ("embed", first), ("image", config.out_channels), **rest
    )
    self.config = config
    self.dtype = dtypes.compute

  def __call__(
    self,
    latents: Float[Array, "images Y X C"],
    timestep: Float32[Array, "images"],
    context: Float[Array, "images tokens D"],
    added: Added | None = None,
    *,
    class_labels: Array | None = None,
    timestep_cond: Float[Array, "images _"] | None = None,
  ) -> Float[Array, "images Y X out"]:
    """The prediction, in the compute dtype.

    Args:
      latents: noisy, scaled as the scheduler wants them; of any size.
      timestep: of each image; may be fractional.
      context: hidden states of the text.
      added: what a model with `addition_embed_type` takes beside it.
      class_labels: an int32 of each image where there are `num_class_embeds`,
        a float32 for `class_embed_type` timestep, else vectors.
      timestep_cond: the embedded guidance of a model distilled from it.
    """
    time = self._time(timestep, timestep_cond)
    if self.class_embedding is not None:
      time = time + self._classes(class_labels)
    if self.add_embedding is not None:
      time = time + self.add_embedding(self._added(added))
    time = jax.nn.silu(time)
    context = context.astype(self.dtype)
    x = self.conv_in(latents)
    skips = [x]
    for stage in self.down_blocks.values():
      x, outputs = stage.down(x, time, context)
      skips += outputs
    if self.mid_block is not None:
      x = self.mid_block.middle(x, time, context)
    for stage in self.up_blocks.values():
      x = stage.up(x, time, context, skips)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))

  def _time(
    self, timestep: jax.Array, condition: jax.Array | None
  ) -> jax.Array:
    wave = self._sinusoids(timestep, self.config.block_out_channels[0])
    return self.time_embedding(wave, condition)

  def _classes(self, labels: jax.Array | None) -> jax.Array:
    if labels is None:
      raise ValueError("this UNet has class embeddings: give class_labels")
    if self.config.class_embed_type == "timestep":
      labels = self._sinusoids(labels, self.config.block_out_channels[0])
    embed = self.class_embedding
    assert embed is not None
    if isinstance(embed, Embed):  # rows of one token
      return embed(labels[:, None])[:, 0]
    return embed(labels)

  def _added(self, added: Added | None) -> jax.Array:
    if added is None:
      raise ValueError(
        "this UNet has addition_embed_type 'text_time': give added, with "
        "text_embeds and time_ids"
      )
    ids = added["time_ids"].astype(jnp.float32)
    waves = self._sinusoids(ids, self.config.addition_time_embed_dim or 0)
    text = added["text_embeds"].astype(self.dtype)
    return jnp.concatenate([text, waves.reshape(len(text), -1)], axis=-1)

  def _sinusoids(self, t: jax.Array, size: int) -> jax.Array:
    # In float32 up to here: 16 bits would round timesteps and sizes.
    flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
    return sinusoids(t, size, flip=flip, shift=shift).astype(self.dtype)


class Stage(nnx.Module):
  """One level on the way down or up, or the middle."""

  def __init__(
    self,
    config: UNetConfig,
    level: Level,
    way: str,
    *,
    remat: str,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    groups, channels = config.norm_num_groups, level.channels
    self.resnets = numbered(
      Residual(
        inputs,
        channels,
        time=config.time_dim,
        groups=groups,
        eps=config.norm_eps,
        **rest,
      )
      for inputs in level.inputs
    )
    self.attentions = nnx.Dict(
      {
        str(i): Transformer(
          channels,
          depth=depth,
          heads=level.heads,
          context=level.context,
          groups=groups,
          linear=config.use_linear_projection,
          remat=remat,
          **rest,
        )
        for i, depth in enumerate(level.depth)
        if depth
      }
    )
    down, up = (level.resampled and way == each for each in ("down", "up"))
    self.downsamplers = numbered(
      Downsample(channels, **rest) for _ in range(down)
    )
    self.upsamplers = numbered(Upsample(channels, **rest) for _ in range(up))
    self.remat = remat

  def down(
    self, x: jax.Array, time: jax.Array, context: jax.Array
  ) -> tuple[jax.Array, list[jax.Array]]:
    """The output, and the output of each block for the way up."""
    outputs = []
    for name in self.resnets:
      x = self._block(name, x, time, context)
      outputs.append(x)
    for layer in self.downsamplers.values():
      x = layer(x)
      outputs.append(x)
    return x, outputs

  def middle(
    self, x: jax.Array, time: jax.Array, context: jax.Array
  ) -> jax.Array:
    for name in self.resnets:
      x = self._block(name, x, time, context)
    return x

  def up(
    self,
    x: jax.Array,
    time: jax.Array,
    context: jax.Array,
    skips: list[jax.Array],
  ) -> jax.Array:
    """Takes from the end of `skips` what its blocks need."""
    for name in self.resnets:
      x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = self._block(name, x, time, context)
    for layer in self.upsamplers.values():
      x = layer(x, *skips[-1].shape[1:3])  # odd sizes come back as they were
    return x

  def _block(
    self, name: str, x: jax.Array, time: jax.Array, context: jax.Array
  ) -> jax.Array:
    x = checkpointed(self.resnets[name], self.remat)(x, time)
    return self.attentions[name](x, context) if name in self.attentions else x


def _class_embedding(
  config: UNetConfig, *, rngs: Rngs, dtypes: Dtypes
) -> TimeEmbedding | Linear | Embed | None:
  rest: Any = {"rngs": rngs, "dtypes": dtypes}
  size = config.projection_class_embeddings_input_dim or 0
  if config.class_embed_type == "timestep":
    return TimeEmbedding(config.block_out_channels[0], config.time_dim, **rest)
  if config.class_embed_type == "projection":
    return TimeEmbedding(size, config.time_dim, **rest)
  if config.class_embed_type == "simple_projection":
    return Linear(
      {"features": size}, {"embed": config.time_dim}, use_bias=True, **rest
    )
  if config.num_class_embeds:
    return Embed(config.num_class_embeds, config.time_dim, std=1.0, **rest)
  return None
