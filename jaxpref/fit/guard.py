"""A watch on pairs whose two sides both become less likely.

A loss of the margin between two responses falls too where the model gets worse
at both, only more so at the worse one: samples break while accuracies rise.
"""

from collections.abc import Callable, Mapping

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.loss import (
  compares,
  find_loss,
  needs_reference,
  takes_steps,
)

PATIENCE = 10
"""Logged lines in a row; a single one says little."""


class Guard:
  """Warns or stops where both sides have stayed below the reference.

  A run that resumes counts anew.
  """

  def __init__(
    self, mode: str, say: Callable[[str], None], *, damps: bool = True
  ):
    """
    Args:
      mode: 'warn', once each time it begins, 'stop', or '' for neither.
      say: is told the warning.
      damps: whether the loss has the option `damp`.
    """
    self._mode, self._say, self._count = mode, say, 0
    self._damp = " or config.loss.damp" if damps else ""

  def watch(self, step: int, values: Mapping[str, float]) -> None:
    """Looks at a logged line; raises UserError where the run is to stop."""
    sides = [values.get(f"rewards/{x}", 0.0) for x in ("chosen", "rejected")]
    self._count = self._count + 1 if max(sides) < 0.0 else 0
    if not self._mode or self._count != PATIENCE:
      return
    told = (
      f"At step {step} both sides of the pairs have been less likely than "
      f"under the reference for {PATIENCE} logged lines (rewards/chosen "
      f"{sides[0]:.3g}, rewards/rejected {sides[1]:.3g}): the model gets worse "
      "at what is preferred too. Another run, in another --workdir, may have a "
      "lower config.optimizer.learning_rate, or a higher "
      f"config.loss.beta{self._damp}."
    )
    if self._mode == "stop":
      raise UserError(
        f"{told} This one goes on from its last checkpoint with "
        "config.train.guard=warn."
      )
    self._say(f"Warning: {told}")


def make_guard(settings: config.Config, say: Callable[[str], None]) -> Guard:
  """The guard of `train.guard`.

  Raises UserError where the loss makes no pairs or has no reference.
  """
  mode, loss = settings.train.guard, find_loss(settings.loss)
  if mode and not (compares(loss) and needs_reference(loss)):
    raise UserError(
      f"config.train.guard is {mode!r}, and the loss {settings.loss.name!r} "
      "does not compare pairs with a reference, by which both sides could "
      "fall. Set it to ''."
    )
  return Guard(mode, say, damps=not takes_steps(loss))
