"""Batches made ahead by grain's threads, and how long one waits for them."""

from collections.abc import Callable, Iterator, Sequence
import time
from typing import Any

import grain

_AHEAD = 4  # batches


class Loader(Iterator[Any]):
  """The batches of steps, in the order of `numbers`, whatever the threads."""

  def __init__(
    self,
    make: Callable[[int], Any],
    numbers: Sequence[int],
    *,
    finish: Callable[[int, Any], Any] | None = None,
    threads: int = 2,
  ):
    """
    Args:
      make: the batch of a step; threads call it.
      numbers: of the steps.
      finish: is laid over each batch when it is asked for, and not before.
      threads: how many make batches; 0 = the one that asks.
    """
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=_AHEAD if threads else 0
    )
    steps = grain.MapDataset.source(numbers).map(make)
    self._batches = iter(steps.to_iter_dataset(options))
    self._numbers, self._finish = iter(numbers), finish
    # Seconds spent here for batches that were not made yet. The devices work
    # meanwhile, so they have waited no longer than that.
    self.waited = 0.0

  def __next__(self) -> Any:
    began = time.perf_counter()
    batch = next(self._batches)
    self.waited += time.perf_counter() - began
    number = next(self._numbers)
    return self._finish(number, batch) if self._finish else batch
