"""All micro-batches of a step as one, for losses coupled over the batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.types import ImageBatch, PixelBatch, TextBatch


def merge_micro_batches(batch: TextBatch, values: Any) -> tuple[TextBatch, Any]:
  """One micro-batch that holds the slots and comparisons of all.

  Args:
    batch: arrays stacked on a first axis.
    values: a pytree of arrays stacked likewise.

  Returns: both with the first two axes joined; slots are numbered on from
  one micro-batch to the next.
  """
  micro_batches, slots = batch.slots.valid.shape
  row = _firsts(micro_batches, slots)[:, None, None]
  _, rows, tokens = batch.tokens.shape
  token = _firsts(micro_batches, rows * tokens)[:, None]
  slot = jnp.where(batch.slot < slots, batch.slot + row, micro_batches * slots)
  numbered = dataclasses.replace(
    batch,
    slot=slot,
    last=batch.last + token,
    **_numbered_on(batch),
  )
  return jax.tree.map(_join, (numbered, values))


def merge_images(
  batch: ImageBatch | PixelBatch, values: Any
) -> tuple[ImageBatch | PixelBatch, Any]:
  """The same of images."""
  first = _firsts(len(batch.prompt), batch.texts)
  prompt = batch.prompt + first[:, None]
  numbered = dataclasses.replace(batch, prompt=prompt, **_numbered_on(batch))
  return jax.tree.map(_join, (numbered, values))


def _numbered_on(batch: Any) -> dict[str, Any]:
  """Comparisons and lists of slots that are numbered over all."""
  first = _firsts(*batch.slots.valid.shape)
  pairs, lists = batch.comparisons, batch.lists
  return {
    "comparisons": dataclasses.replace(
      pairs,
      better=pairs.better + first[:, None],
      worse=pairs.worse + first[:, None],
    ),
    "lists": dataclasses.replace(lists, slot=lists.slot + first[:, None, None]),
  }


def _firsts(micro_batches: int, size: int) -> jax.Array:
  return size * jnp.arange(micro_batches, dtype=jnp.int32)


def _join(x: jax.Array) -> jax.Array:
  return x.reshape(-1, *x.shape[2:])
