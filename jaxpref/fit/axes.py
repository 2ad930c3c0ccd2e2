"""Losses and metrics of a reward model with a reward on each of several axes.

Each axis is learned from the data's scores of its name, as if it were a model
of its own over the same hidden states. A pair, or response, is the mean over
the axes that it has labels for, and counts once; what has none counts nowhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref import losses
from jaxpref.fit.loss import compares
from jaxpref.fit.objectives import Terms
from jaxpref.fit.views import Views
from jaxpref.losses.ratios import mean_where
from jaxpref.types import Term, TextBatch, sum_valid


def axis_terms(
  loss: Callable[..., Any],
  options: Mapping[str, Any],
  axes: Sequence[str],
  batch: TextBatch,
  rewards: Float32[Array, "slots axes"],
) -> tuple[Terms, Terms]:
  """The loss of a micro-batch and its metrics.

  A loss of one reward (`bradley_terry`) is taken on each axis by itself, and
  averaged as those that know of axes do (`losses.reward_axes`).

  Args:
    loss: of pairs or of responses; it takes scores or comparisons.
    options: its keyword arguments.
    axes: their names.
    batch: with `slots.ratings` and `comparisons.preferences`.
    rewards: of each response on each axis.

  Reference: Liu et al. 2025 (https://arxiv.org/abs/2501.13918), comparisons on
  each axis; Wang et al. 2024 (https://arxiv.org/abs/2406.08673), a regression
  on the scores.
  """
  views = AxisViews(batch, rewards, losses.spec(loss).unit)
  found = {"loss": _loss_term(loss, options, views)}
  if compares(loss):
    return found, _pair_metrics(views, axes, values=True)
  error = jnp.abs(views["reward"] - views["score"])
  return found, {
    **_pair_metrics(views, axes, values=False),
    **_by_axis("rewards/errors", axes, error, views["present"]),
  }


class AxisViews(Views):
  """What losses ask for, with the axes last: `views["chosen_reward"]`."""

  def __init__(
    self,
    batch: TextBatch,
    rewards: Float32[Array, "slots axes"],
    unit: losses.Unit,
  ) -> None:
    self.batch, self.unit, self._rewards = batch, unit, rewards
    ratings, labels = batch.slots.ratings, batch.comparisons.preferences
    assert ratings is not None  # see `rated_axes`
    assert labels is not None
    self._ratings, self._labels = ratings, labels

  def __getitem__(self, name: str) -> Array:
    if name == "present":
      return self.compared if self.unit == "pair" else self.rated
    # NaN goes no further than here, where no gradient comes along.
    if name == "preference":
      return jnp.where(self.compared, self._labels, 0.5)
    if name == "score":
      return jnp.where(self.rated, self._ratings, 0.0)
    return super().__getitem__(name)

  @property
  def compared(self) -> Bool[Array, "pairs axes"]:
    """Which labels the comparisons have."""
    valid = self.batch.comparisons.valid
    return ~jnp.isnan(self._labels) & valid[:, None]

  @property
  def rated(self) -> Bool[Array, "slots axes"]:
    """Which scores the responses have."""
    return ~jnp.isnan(self._ratings) & self.batch.slots.valid[:, None]

  def slot_values(self, what: str) -> Float32[Array, "slots axes"]:
    assert what == "reward", what  # `trains_rewards` refuses before
    return self._rewards


def _loss_term(
  loss: Callable[..., Any], options: Mapping[str, Any], views: AxisViews
) -> Term:
  names, present = losses.inputs(loss), views["present"]
  values = loss(*(views[name] for name in names), **options)
  if compares(loss) and "preference" not in names:
    backward = loss(*(views.swapped(name) for name in names), **options)
    sure = views["preference"]
    values = sure * values + (1.0 - sure) * backward
  if "present" not in names:
    values = mean_where(values, present)
  weight = views.batch.comparisons.weight if compares(loss) else 1.0
  return sum_valid(values, present.any(axis=-1), weight)


def _pair_metrics(
  views: AxisViews, axes: Sequence[str], *, values: bool
) -> Terms:
  """Of comparisons that are no tie; on each axis its better one is chosen."""
  first, second = views["chosen_reward"], views["rejected_reward"]
  sure = views["preference"]
  told = views.compared & (sure != 0.5)
  chosen = jnp.where(sure > 0.5, first, second)
  rejected = jnp.where(sure > 0.5, second, first)
  found = {
    "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
    "rewards/ties": (chosen == rejected).astype(jnp.float32),
  }
  if values:
    found |= {
      "rewards/chosen": chosen,
      "rewards/rejected": rejected,
      "rewards/margins": chosen - rejected,
    }
  terms: Terms = {}
  for name, x in found.items():
    terms |= _by_axis(name, axes, x, told)
  return terms


def _by_axis(
  name: str,
  axes: Sequence[str],
  x: Float32[Array, "units axes"],
  there: Bool[Array, "units axes"],
) -> Terms:
  """The average over axes of each unit, and beside it that of each axis."""
  terms = {name: sum_valid(mean_where(x, there), there.any(axis=-1))}
  if len(axes) > 1:
    for k, axis in enumerate(axes):
      terms[f"{name}/{axis}"] = sum_valid(x[:, k], there[:, k])
  return terms
