"""CLIP's vision tower with its projection, for scores of images."""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from jaxpref.models.layers import (
  Linear,
  Rngs,
  normal,
  param,
  scan_layers,
  stack_layers,
)
from jaxpref.models.sdxl.clip import INITIAL, ClipLayer, Places
from jaxpref.models.sdxl.clip_config import ClipVisionConfig
from jaxpref.models.sdxl.layers import Conv, LayerNorm, as_dtypes
from jaxpref.ops.full_attention import full_attention


class ClipVision(nnx.Module):
  """Normalised pixels to the vector that is compared with a text's.

  Of both, divided by their lengths, the product is the CLIP score.
  """

  def __init__(
    self,
    config: ClipVisionConfig,
    *,
    rngs: Rngs,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: str,
  ):
    dtypes = as_dtypes(dtype, param_dtype)
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    size, eps = config.hidden_size, config.layer_norm_eps
    places = 1 + (config.image_size // config.patch_size) ** 2
    self.class_embedding = param(
      rngs, (size,), ("norm",), normal(INITIAL), dtypes.params
    )
    self.patch_embedding = Conv(
      ("image", config.num_channels),
      ("embed", size),
      window=config.patch_size,
      stride=config.patch_size,
      padding=(0, 0),
      use_bias=False,
      **rest,
    )
    self.position_embedding = Places(places, size, **rest)
    self.pre_layrnorm = LayerNorm(size, eps=eps, **rest)  # transformers' name
    layer = functools.partial(ClipLayer, config, dtypes=dtypes)
    self.layers = stack_layers(layer, config.num_hidden_layers, rngs)
    self.post_layernorm = LayerNorm(size, eps=eps, **rest)
    self.visual_projection = Linear(
      {"embed": size},
      {"features": config.projection_dim},
      use_bias=False,
      **rest,
    )
    self.remat = remat

  def __call__(
    self, pixels: Float[Array, "images Y X 3"]
  ) -> Float[Array, "images P"]:
    """`pixels` have the config's `image_size`, and CLIP's mean and std."""
    patches = self.patch_embedding(pixels)
    images, _, _, size = patches.shape
    patches = patches.reshape(images, -1, size)
    first = self.class_embedding[...].astype(patches.dtype)
    first = jnp.broadcast_to(first.reshape(1, 1, size), (images, 1, size))
    x = jnp.concatenate([first, patches], axis=1)
    x = x + self.position_embedding.table[...][None].astype(x.dtype)

    def call(
      layer: ClipLayer, x: jax.Array, item: Any
    ) -> tuple[jax.Array, Any]:
      return layer(x, full_attention), item

    x = self.pre_layrnorm(x)
    x, _ = scan_layers(self.layers, call, x, remat=self.remat)
    return self.visual_projection(self.post_layernorm(x[:, 0]))
