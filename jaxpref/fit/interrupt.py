"""SIGTERM: finish the step, save, leave."""

import signal
import types

import jax
from jax.experimental import multihost_utils


class Interrupt:
  """While entered, notes SIGTERM instead of dying of it.

  With several processes JAX's preemption service takes the signal on any of
  them and has all agree on the step after which they leave.
  """

  def __init__(self) -> None:
    self._asked = False
    self._before: object = None

  def __enter__(self) -> "Interrupt":
    if jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_: object) -> None:
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

  def requested(self, step: int) -> bool:
    """Whether to leave after this step; the same answer in all processes."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _note(self, number: int, frame: types.FrameType | None) -> None:
    del number, frame
    self._asked = True
