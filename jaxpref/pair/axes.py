"""Labels on several axes, for reward models with a reward on each.

Two responses are compared on an axis where both have a score on it, whatever
the other axes say of them. So that a label is missing counts for that axis
alone, and one response may be the better on an axis and the worse on another.
"""

from collections.abc import Sequence

from jaxtyping import Float, Float32
import numpy as np

from jaxpref import config
from jaxpref.data.cache import Prepared
from jaxpref.errors import UserError
from jaxpref.pair.rules import preference


def find_ratings(
  data: Prepared, axes: Sequence[str]
) -> Float32[np.ndarray, "m axes"]:
  """The data's scores on the axes, by name; NaN where there is none.

  Raises UserError where the data have none of the axes. One that they lack is
  missing everywhere: another source may have it.
  """
  known = list(data.axes)
  if axes and not set(axes) & set(known):
    raise _unknown(axes, axes, known)
  nothing = np.full(len(data.label), np.nan, np.float32)
  columns = [
    data.scores[known.index(axis)] if axis in known else nothing
    for axis in axes
  ]
  return np.array(columns, np.float32).reshape(len(axes), len(nothing)).T


def preferences(
  gap: Float[np.ndarray, "c axes"], rules: config.Pair
) -> Float32[np.ndarray, "c axes"]:
  """P(first is preferred) by how far its scores are above the second's.

  Args:
    gap: of the scores on each axis, in their units; NaN where one is missing.
    rules: `margin` and `ties` are read; they hold on each axis.

  Returns: NaN where there is no comparison.
  """

  def one(gap: float) -> float:
    sure = None if np.isnan(gap) else preference(abs(gap), rules)
    if sure is None:
      return np.nan
    return sure if gap >= 0 else 1.0 - sure

  return np.vectorize(one, otypes=[np.float32])(gap)


def check_axes(data: Prepared, axes: Sequence[str], *, compared: bool) -> None:
  """Raises UserError for an axis that nothing is learned of.

  Args:
    data: all examples to train on.
    axes: what the reward model has a reward for.
    compared: whether the loss is one of comparisons, else of single responses.
  """
  if unknown := [axis for axis in axes if axis not in data.axes]:
    raise _unknown(axes, unknown, data.axes)
  labels = data.preferences if compared else data.ratings
  counts = np.count_nonzero(~np.isnan(labels), axis=0)
  if empty := [axis for axis, n in zip(axes, counts, strict=True) if not n]:
    what, advice = _ABSENT[compared]
    raise UserError(
      f"In the examples to train on, no {what} on {_quoted(empty)}, so that "
      "nothing is learned of it. Leave it out of config.model.reward_axes, or "
      f"{advice}."
    )


_ABSENT = {
  True: (
    "two responses to a prompt are compared",
    "set config.pair.rule=all_pairs to compare more of them, and "
    "config.pair.ties=keep where all of them are rated the same",
  ),
  False: ("response is rated", "give it data"),
}
"""Of comparisons, and of responses: what there is none of, what to do."""


def _unknown(
  axes: Sequence[str], unknown: Sequence[str], known: Sequence[str]
) -> UserError:
  start = (
    f"The reward model has the axes {_quoted(axes)} (config.model.reward_axes, "
    "else the model's own), which train on the data's scores of these names. "
  )
  if not known:
    return UserError(
      f"{start}The data score nothing. Give rows with several responses and "
      "their scores, as those of HelpSteer2 or UltraFeedback; comparisons "
      "alone train one reward, with one name in config.model.reward_axes and "
      "config.loss.name=bradley_terry."
    )
  return UserError(
    f"{start}No response has a score {_quoted(unknown)}; the data have "
    f"{_quoted(known)}. Name some of those in config.model.reward_axes."
  )


def _quoted(names: Sequence[str]) -> str:
  return ", ".join(repr(name) for name in names)
