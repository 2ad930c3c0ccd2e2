"""Losses of reward models with several axes at once, some labels missing.

One response gets a reward on each axis (quality, motion, alignment ...), one
pair a label on some of them. A pair's loss is the mean over the axes that it
has labels for, each counting the same: a pair counts once however many labels
it has. A pair without any gets 0. What stands where a label is missing does not
matter; it may be NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.ratios import mean_where
from jaxpref.losses.registry import loss
from jaxpref.losses.reward import bradley_terry_ties
from jaxpref.types import Scalar


@loss("pair")
def bradley_terry_axes(
  chosen_reward: Float32[Array, "*pairs axes"],
  rejected_reward: Float32[Array, "*pairs axes"],
  preference: Float32[Array, "*pairs axes"],
  present: Bool[Array, "*pairs axes"],
  *,
  margin: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Bradley-Terry loss of pairs that are compared on several axes.

      axis = -p log σ(d - m) - (1 - p) log σ(-d - m),   d = first - second
      loss = mean of axis over the axes that have labels

  Use: for one reward model with an output an axis. Mark ties as missing to
  leave them out; kept, a tie (0.5) pulls the two rewards together.

  Args:
    chosen_reward: reward of the first response on each axis. It need not be
      the better one on all of them.
    rejected_reward: the same for the second response.
    preference: p, 1 where the first was preferred on the axis, 0 the second.
    present: which labels there are.
    margin: m, what the better reward should exceed the other by.

  Returns: one loss per pair; log 2 where rewards are equal and m = 0.

  Reference: Liu et al. 2025 (https://arxiv.org/abs/2501.13918). The authors'
  code divides by all axes of all pairs, so missing labels dilute it; margin
  0.57 is an option there.

  >>> a, b, p = jnp.array([[1.0, 0.2]]), jnp.zeros((1, 2)), jnp.ones((1, 2))
  >>> f"{bradley_terry_axes(a, b, p, p > 0)[0]:.4f}"
  '0.4557'
  """
  first, second, preference = _labelled(
    present, chosen_reward, rejected_reward, preference
  )
  won = -jax.nn.log_sigmoid(first - second - margin)
  lost = -jax.nn.log_sigmoid(second - first - margin)
  return mean_where(preference * won + (1.0 - preference) * lost, present)


@loss("pair")
def bradley_terry_ties_axes(
  chosen_reward: Float32[Array, "*pairs axes"],
  rejected_reward: Float32[Array, "*pairs axes"],
  preference: Float32[Array, "*pairs axes"],
  present: Bool[Array, "*pairs axes"],
  *,
  theta: Scalar = 5.0,
) -> Float32[Array, "*pairs"]:
  """Bradley-Terry loss with ties, of pairs compared on several axes.

      axis = bradley_terry_ties(first, second, preference)
      loss = mean of axis over the axes that have labels

  Use: as `bradley_terry_axes`, where people could answer "same".

  Args:
    chosen_reward: reward of the first response on each axis. It need not be
      the better one on all of them.
    rejected_reward: the same for the second response.
    preference: 1 where the first was preferred on the axis, 0 the second, 0.5
      for a tie.
    present: which labels there are.
    theta: how much ties are expected, as in `bradley_terry_ties`.

  Returns: one loss per pair; log(1 + θ) for wins between equal rewards.

  Reference: Liu et al. 2025 (https://arxiv.org/abs/2501.13918). The authors'
  code divides by all axes of all pairs, so missing labels dilute it.

  >>> a, b, p = jnp.array([[1.0, 0.2]]), jnp.zeros((1, 2)), jnp.ones((1, 2))
  >>> f"{bradley_terry_ties_axes(a, b, p, p > 0)[0]:.4f}"
  '1.3358'
  """
  labelled = _labelled(present, chosen_reward, rejected_reward, preference)
  return mean_where(bradley_terry_ties(*labelled, theta=theta), present)


@loss("response")
def reward_mse_axes(
  reward: Float32[Array, "*responses axes"],
  score: Float32[Array, "*responses axes"],
  present: Bool[Array, "*responses axes"],
) -> Float32[Array, "*responses"]:
  """Squared error of a reward model that predicts scores on several axes.

      loss = mean of (reward - score)² over the axes that have scores

  Use: where responses were rated on several scales (helpful, correct ...), not
  each on all.

  Args:
    reward: what the model predicts on each axis, on that axis' scale.
    score: what the data says.
    present: which scores there are.

  Returns: one loss per response; 0 where they agree.

  Reference: Wang et al. 2024 (https://arxiv.org/abs/2406.08673).

  >>> r, s = jnp.array([[1.2, 0.3]]), jnp.array([[1.0, 0.5]])
  >>> f"{reward_mse_axes(r, s, jnp.array([[True, False]]))[0]:.4f}"
  '0.0400'
  """
  reward, score = _labelled(present, reward, score)
  return mean_where((reward - score) ** 2, present)


def _labelled(
  present: Bool[Array, "*rows axes"], *arrays: Float32[Array, "*rows axes"]
) -> list[Float32[Array, "*rows axes"]]:
  """Arrays with 0 in place of what has no label."""
  return [jnp.where(present, each, 0.0) for each in arrays]
