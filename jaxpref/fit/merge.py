"""All micro-batches of a step as one, for losses coupled over the batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.types import TextBatch


def merge_micro_batches(batch: TextBatch, values: Any) -> tuple[TextBatch, Any]:
  """One micro-batch that holds the slots and comparisons of all.

  Args:
    batch: arrays stacked on a first axis.
    values: a pytree of arrays stacked likewise.

  Returns: both with the first two axes joined; slots are numbered on from
  one micro-batch to the next.
  """
  micro_batches, slots = batch.slots.valid.shape
  first = slots * jnp.arange(micro_batches, dtype=jnp.int32)
  row = first[:, None, None]
  _, rows, tokens = batch.tokens.shape
  token = rows * tokens * jnp.arange(micro_batches, dtype=jnp.int32)[:, None]
  slot = jnp.where(batch.slot < slots, batch.slot + row, micro_batches * slots)
  pairs, lists = batch.comparisons, batch.lists
  numbered = dataclasses.replace(
    batch,
    slot=slot,
    slots=dataclasses.replace(batch.slots, last=batch.slots.last + token),
    comparisons=dataclasses.replace(
      pairs,
      better=pairs.better + first[:, None],
      worse=pairs.worse + first[:, None],
    ),
    lists=dataclasses.replace(lists, slot=lists.slot + row),
  )
  return jax.tree.map(_join, (numbered, values))


def _join(x: jax.Array) -> jax.Array:
  return x.reshape(-1, *x.shape[2:])
