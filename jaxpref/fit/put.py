"""From the host to the devices, and back."""

from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jaxtyping import Bool
import numpy as np

from jaxpref import sharding
from jaxpref.types import Pictures, TextBatch

Batch = TypeVar("Batch", TextBatch, Pictures)


def put_batch(mesh: jax.sharding.Mesh, batch: Batch) -> Batch:
  """Moves the arrays of a step to the devices, rows or images spread over them.

  Those that are there already stay.
  """

  def move(x: np.ndarray | jax.Array, place: Any) -> jax.Array:
    if isinstance(x, jax.Array):
      return jax.device_put(x, place)
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

  with jax.transfer_guard("allow"):  # this is the transfer that is meant
    return jax.tree.map(move, batch, batch_places(mesh, batch))


def batch_places(mesh: jax.sharding.Mesh, batch: Batch) -> Batch:
  """Where each array of a step lies."""
  rows = sharding.batch_sharding(mesh, axis=1)
  everywhere = sharding.replicated(mesh)
  whole = ("last", "slots", "comparisons", "lists")
  return jax.tree.map_with_path(
    lambda path, _: everywhere if path[0].name in whole else rows, batch
  )


def fetch(x: jax.Array) -> np.ndarray:
  """The whole array, in every process."""
  if jax.process_count() == 1:
    return jax.device_get(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def in_all(here: Bool[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
  """Which entries hold in every process."""
  if jax.process_count() == 1:
    return here
  return np.all(multihost_utils.process_allgather(here), axis=0)
