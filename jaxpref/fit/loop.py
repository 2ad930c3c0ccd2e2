"""The one training loop."""

from collections import Counter
from collections.abc import Callable, Mapping
import functools
import time
from typing import Any

import jax
import numpy as np

from jaxpref import config
from jaxpref.data.image_steps import ImageSteps
from jaxpref.data.loader import Loader
from jaxpref.data.packing import Waste
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.checkpoint import Checkpoints
from jaxpref.fit.flops import Speed
from jaxpref.fit.guard import Guard
from jaxpref.fit.metrics import RunLog, averages
from jaxpref.fit.step import Step, TrainState
from jaxpref.types import Params

Put = Callable[[Any], Any]


class _Window:
  """Sums of the steps since the last logged one."""

  def __init__(self, speed: Speed, batches: Loader) -> None:
    self.speed = speed
    self.batches, self.waited = batches, batches.waited
    self.terms: list[Any] = []
    self.amounts: Counter[str] = Counter()
    self.flops = 0.0
    self.waste: list[Waste] = []
    self.began = time.perf_counter()

  def add(
    self, step: int, terms: Any, amounts: Mapping[str, int], waste: Waste
  ) -> None:
    self.terms.append(terms)
    self.waste.append(waste)
    self.flops += self.speed.flops(step)
    self.amounts.update(amounts)

  def averages(self) -> dict[str, float]:
    fetched = jax.device_get(self.terms)
    summed = jax.tree.map(lambda *each: np.sum(each), *fetched)
    seconds = time.perf_counter() - self.began
    tokens, *wasted = map(sum, zip(*self.waste, strict=True))
    shares = zip(Waste._fields[1:], wasted, strict=True)
    return {
      **averages(summed),
      **{f"{x}_per_second": n / seconds for x, n in self.amounts.items()},
      **self.speed.rates(self.flops, seconds),
      "data/wait_share": (self.batches.waited - self.waited) / seconds,
      **{f"waste/{name}": count / tokens for name, count in shares},
    }


def fit(
  step: Step,
  state: TrainState,
  frozen: Mapping[str, Params],
  steps: Steps | ImageSteps,
  *,
  start: int,
  stop: int,
  put: Put,
  settings: config.Train,
  log: RunLog,
  checkpoints: Checkpoints,
  speed: Speed,
  judge: Callable[[TrainState, int], dict[str, float]],
  interrupted: Callable[[int], bool],
  guard: Guard,
  before_save: Callable[[], None] = lambda: None,
) -> tuple[TrainState, int]:
  """Trains from step `start` to `stop`.

  Step k + 1 is dispatched before the numbers of step k are read, so the
  devices never wait for the host. A checkpoint is begun only when all lines
  up to it are written.

  Args:
    step: the compiled step, which consumes the state it is given.
    state: what it starts from, after `start` steps.
    frozen: parameters that stay, by role.
    steps: the batches.
    start: steps made so far.
    stop: steps of the whole run.
    put: moves a batch to the devices.
    settings: how often to log, judge and save.
    log: where the numbers go.
    checkpoints: where states go.
    speed: how much a step makes use of the devices.
    judge: numbers of a state worth keeping, after this many steps.
    interrupted: whether to leave after this many steps.
    guard: looks at the numbers.
    before_save: writes what a run that resumes from a checkpoint needs beside.

  Returns: the state, and the step reached, earlier than `stop` where
  `interrupted` said so; that state is saved too.

  Raises UserError when loss or gradient are no longer finite, or `guard` does.
  """
  batches = steps.loader(range(start, stop))
  window, pending = _Window(speed, batches), 0

  def flush(
    more: Callable[[], Mapping[str, float]] = dict[str, float],
  ) -> None:
    """Writes the numbers of step `pending`, if it is not written yet."""
    nonlocal window, pending
    if not pending:
      return
    seen = steps.seen(pending).items()
    values = window.averages() | {f"examples/{n}": float(x) for n, x in seen}
    _check_finite(values, pending)
    log.write(pending, {**values, **more()})
    log.progress(pending, values)
    guard.watch(pending, values)
    window, pending = _Window(speed, batches), 0

  reached = start
  with jax.transfer_guard("disallow"):
    for number, batch in zip(range(start + 1, stop + 1), batches, strict=True):
      arrays = put(batch)
      state, terms = step(state, frozen, arrays)
      flush()
      amounts, waste = steps.amounts(batch), steps.waste(number - 1)
      window.add(number - 1, terms, amounts, waste)
      reached = number
      leave = interrupted(number)
      last = leave or number == stop
      save = last or _due(number, settings.checkpoint_every)
      # Who is asked to leave has little time: no evaluation then.
      judged = number == stop or (
        not leave and _due(number, settings.eval_every)
      )
      if save or judged or _due(number, settings.log_every):
        pending = number
      with jax.transfer_guard("allow" if save or judged else "disallow"):
        if judged:
          flush(functools.partial(judge, state, number))
        if save:
          flush()
          before_save()
          checkpoints.save(number, state)
      if leave:
        break
  return state, reached


def _check_finite(values: Mapping[str, float], step: int) -> None:
  # The gradient as well: it decides whether the parameters still are finite.
  for name in ("loss", "grad_norm"):
    if not np.isfinite(values[name]):
      raise UserError(
        f"{name} is {values[name]} at step {step}. Start again in another "
        "--workdir with a lower config.optimizer.learning_rate, or a "
        "config.optimizer.grad_clip; --debug stops where a NaN arises."
      )


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
