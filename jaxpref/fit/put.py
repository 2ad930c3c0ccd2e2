"""From the host to the devices."""

from typing import Any

import jax
import numpy as np

from jaxpref import sharding
from jaxpref.types import TextBatch


def put_batch(mesh: jax.sharding.Mesh, batch: TextBatch) -> TextBatch:
  """Moves the arrays of a step to the devices, rows spread over them.

  Those that are there already stay.
  """
  rows = sharding.batch_sharding(mesh, axis=1)
  everywhere = sharding.replicated(mesh)
  whole = ("slots", "comparisons")

  def move(path: Any, x: np.ndarray | jax.Array) -> jax.Array:
    place = everywhere if path[0].name in whole else rows
    if isinstance(x, jax.Array):
      return jax.device_put(x, place)
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

  with jax.transfer_guard("allow"):  # this is the transfer that is meant
    return jax.tree.map_with_path(move, batch)
