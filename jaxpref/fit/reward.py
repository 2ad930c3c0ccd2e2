"""The objective of reward models: from packed rows to rewards of responses.

A reward is read at a response's last token, its EOS included. transformers'
sequence classifiers read it at the last token that is not padding, which is the
same unless the EOS is what they pad with.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref import config, losses
from jaxpref.fit.axes import axis_terms
from jaxpref.fit.loss import compares, find_loss, own_options, rated_axes
from jaxpref.fit.merge import merge_micro_batches
from jaxpref.fit.objectives import (
  Objective,
  Roles,
  Terms,
  loss_term,
  read_rows,
)
from jaxpref.fit.views import Views
from jaxpref.models.build import Definition
from jaxpref.models.lora import overlay
from jaxpref.types import Params, TextBatch, sum_valid


def score_rewards(
  definition: Definition,
  params: Params,
  batch: TextBatch,
  dropout_key: Any = None,
) -> Float32[Array, "slots axes"]:
  """The rewards of every response of packed rows."""
  model, hidden = read_rows(definition, params, batch, dropout_key)
  # Of all tokens: a few numbers each, where gathering their states first would
  # send those between devices.
  rewards = model.score(hidden)
  return rewards.reshape(-1, rewards.shape[-1])[batch.last]


def reward_objective(
  definition: Definition, settings: config.Loss, *, training: bool = False
) -> Objective:
  """The objective of `settings.name` on rewards of packed text.

  Several rewards train on the data's scores, see `axes.axis_terms`.

  Roles: `policy` (trainable), the reward model; under an adapter it is the
  factors and the head, and `base` (frozen) the rest.

  Args:
    definition: a model with a reward head.
    settings: the loss and its options.
    training: whether an adapter drops inputs.

  Raises UserError for a loss that does not take several, where there are.
  """
  loss = find_loss(settings)
  unit, coupled, _ = losses.spec(loss)
  axes = rated_axes(loss, definition.rewards)

  def forward(
    trainable: Roles, frozen: Roles, batch: TextBatch, key: jax.Array
  ) -> Array:
    drops = training and definition.lora.dropout > 0
    key = jax.random.fold_in(key, batch.slots.example_id[0])
    whole = overlay(frozen.get("base", {}), trainable["policy"])
    return score_rewards(definition, whole, batch, key if drops else None)

  def terms(
    state: Any, batch: TextBatch, rewards: Array
  ) -> tuple[Terms, Any, Terms]:
    if axes:
      found, metrics = axis_terms(
        loss, own_options(settings), axes, batch, rewards
      )
      return found, state, jax.lax.stop_gradient(metrics)
    views = RewardViews(batch, rewards[:, 0], unit)
    found = {"loss": loss_term(loss, own_options(settings), views)}
    metrics = _metrics(views, loss)
    return found, state, jax.lax.stop_gradient(metrics)

  return Objective(forward, terms, merge_micro_batches if coupled else None)


class RewardViews(Views):
  """Rewards, by slot and by side of a pair: `views["chosen_reward"]`."""

  def __init__(
    self, batch: TextBatch, rewards: Float32[Array, "slots"], unit: losses.Unit
  ) -> None:
    self.batch, self.unit, self._rewards = batch, unit, rewards

  def slot_values(self, what: str) -> Float32[Array, "slots"]:
    assert what == "reward", what  # `check_rewards` refuses before
    return self._rewards


def _metrics(views: RewardViews, loss: Callable[..., Any]) -> Terms:
  def mean(x: Array) -> Any:
    return sum_valid(x.astype(jnp.float32), views.told)

  chosen, rejected = views["chosen_reward"], views["rejected_reward"]
  metrics = {
    "rewards/accuracies": mean(chosen > rejected),
    "rewards/ties": mean(chosen == rejected),
  }
  if compares(loss):
    return metrics | {
      "rewards/chosen": mean(chosen),
      "rewards/rejected": mean(rejected),
      "rewards/margins": mean(chosen - rejected),
    }
  for side, label in (("chosen", 1), ("rejected", 0)):
    here = views.valid & (views.batch.slots.label == label)
    metrics[f"rewards/{side}"] = sum_valid(views["reward"], here)
  return metrics
