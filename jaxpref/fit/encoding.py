"""Training from pixels: autoencoder and text encoders in front of a step.

What they give is what `data.images` stores, so that all behind them (the noise,
the UNet, the loss) is the same whether it was stored or not.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float32

from jaxpref import sharding
from jaxpref.fit.objectives import Objective, Roles
from jaxpref.models.build import Definition
from jaxpref.models.sdxl.pipeline import encode_images, encode_text
from jaxpref.types import ImageBatch, PixelBatch

Encode = Callable[[Roles, PixelBatch], ImageBatch]
Score = Callable[[Roles, Any], Float32[Array, "micros slots"]]


def make_encode(definitions: Mapping[str, Definition]) -> Encode:
  """encode(frozen, batch) -> the batch with latents and texts.

  A device takes one image at a time, and one text. So did the caches: in larger
  batches a latent was 6e-7 off on CPU. And of an image of 1024² pixels, which
  fills a device, the activations of the autoencoder take gigabytes.

  Args:
    definitions: of the autoencoder and the text encoders by the names of a
      pipeline's parts, which are their roles in `frozen`.
  """

  def encode(frozen: Roles, batch: PixelBatch) -> ImageBatch:
    with jax.named_scope("encode_images"):
      mean, std = _in_turns(
        lambda pixels: encode_images(definitions, frozen, pixels), batch.pixels
      )
    with jax.named_scope("encode_text"):
      context, pooled = _in_turns(
        lambda ids: encode_text(definitions, frozen, ids), batch.ids
      )
    return batch.encoded(mean=mean, std=std, context=context, pooled=pooled)

  return encode


def encoded_first(objective: Objective, encode: Encode) -> Objective:
  """The objective on pixels: it encodes each micro-batch before anything else.

  The encoders are frozen, so that no gradient goes back through them.
  """

  def forward(
    trainable: Roles, frozen: Roles, batch: PixelBatch, key: jax.Array
  ) -> Any:
    return objective.forward(trainable, frozen, encode(frozen, batch), key)

  return dataclasses.replace(objective, forward=forward)


def score_encoded(score: Score, encode: Encode) -> Score:
  """What scores the images of a step, given their pixels."""

  @jax.jit
  def score_pixels(
    frozen: Roles, batch: PixelBatch
  ) -> Float32[Array, "micros slots"]:
    return score(frozen, jax.lax.map(lambda x: encode(frozen, x), batch))

  return score_pixels


def _in_turns(function: Callable[[Any], Any], rows: Any) -> Any:
  """The function of rows, of one on each device at a time."""
  devices = sharding.shards("batch")

  def spread(x: jax.Array) -> jax.Array:
    """[rows, ...] to [turns, devices, ...]: no row moves."""
    x = x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1)
    return sharding.constrain(x, (None, "batch", *[None] * (x.ndim - 2)))

  def joined(x: jax.Array) -> jax.Array:
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  made = jax.lax.map(function, jax.tree.map(spread, rows))
  return jax.tree.map(joined, made)
