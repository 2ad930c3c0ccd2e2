"""Losses of reward models: one number a response, learned from comparisons.

`chosen_reward` and `rejected_reward` are what the model gives the two responses
of a pair; no reference model is involved.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range


@loss("pair")
def bradley_terry(
  chosen_reward: Float32[Array, "*pairs"],
  rejected_reward: Float32[Array, "*pairs"],
  *,
  center: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Negative log-likelihood of the comparison under Bradley and Terry's model.

      loss = -log σ(chosen - rejected) + c (chosen + rejected)²

  Use: the usual reward model. A small `center` (0.01) keeps rewards around
  zero, which comparisons alone leave open.

  Args:
    chosen_reward: reward of the preferred response, of any scale.
    rejected_reward: the same for the other response.
    center: c, the weight of the squared sum of both rewards.

  Returns: one loss per pair; log 2 where both rewards are 0.

  Reference: Ouyang et al. 2022, eq. 1 (https://arxiv.org/abs/2203.02155), who
  divide by the comparisons of a prompt; centring: Eisenstein et al. 2023
  (https://arxiv.org/abs/2312.09244).

  >>> f"{bradley_terry(jnp.array([1.2]), jnp.array([0.4]))[0]:.4f}"
  '0.3711'
  """
  difference = chosen_reward - rejected_reward
  spread = center * (chosen_reward + rejected_reward) ** 2
  return -jax.nn.log_sigmoid(difference) + spread


@loss("pair")
def bradley_terry_margin(
  chosen_reward: Float32[Array, "*pairs"],
  rejected_reward: Float32[Array, "*pairs"],
  margin: Float32[Array, "*pairs"],
  *,
  center: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Bradley-Terry loss that asks for a gap of its own size from each pair.

      loss = -log σ(chosen - rejected - margin) + c (chosen + rejected)²

  Use: where labels say how much better a response is: "significantly better"
  asks for a larger margin than "slightly better".

  Args:
    chosen_reward: reward of the preferred response, of any scale.
    rejected_reward: the same for the other response.
    margin: what the first should exceed the second by, on the rewards' scale.
    center: c, as in `bradley_terry`.

  Returns: one loss per pair; log 2 where the rewards differ by the margin
  and are centred.

  Reference: Touvron et al. 2023, eq. 2 (https://arxiv.org/abs/2307.09288);
  centring: Eisenstein et al. 2023 (https://arxiv.org/abs/2312.09244).

  >>> r = jnp.array([1.2])
  >>> f"{bradley_terry_margin(r, jnp.array([0.4]), jnp.array([0.5]))[0]:.4f}"
  '0.5544'
  """
  difference = chosen_reward - rejected_reward - margin
  spread = center * (chosen_reward + rejected_reward) ** 2
  return -jax.nn.log_sigmoid(difference) + spread


@loss("pair")
def bradley_terry_ties(
  chosen_reward: Float32[Array, "*pairs"],
  rejected_reward: Float32[Array, "*pairs"],
  preference: Float32[Array, "*pairs"],
  *,
  theta: Scalar = 5.0,
) -> Float32[Array, "*pairs"]:
  """Negative log-likelihood of a comparison that may end in a tie.

      L_first  = softplus(k - d),   d = chosen - rejected,   k = log θ
      L_second = softplus(k + d)
      L_tie    = L_first + L_second - log(θ² - 1)

  Use: where people could call two responses equal. A tie pulls the rewards
  together instead of being thrown away.

  Preferences between the three are interpolated: 0.75 is half a win, half a
  tie.

  Args:
    chosen_reward: reward of the first response, of any scale.
    rejected_reward: the same for the second response.
    preference: 1 where the first was preferred, 0 the second, 0.5 for a tie.
    theta: how far the rewards must be apart, as a ratio of odds, before a win
      is more likely than not; larger expects more ties. Above 1.

  Returns: one loss per pair; log(1 + θ) for a win between equal rewards.

  Reference: Rao and Kupper 1967; Liu et al. 2025
  (https://arxiv.org/abs/2501.13918).

  >>> r, tie = jnp.array([-0.3]), jnp.array([0.5])
  >>> f"{bradley_terry_ties(r, r, tie)[0]:.4f}"
  '0.4055'
  """
  check_range("theta", theta, 1.00001, jnp.inf)
  difference, k = chosen_reward - rejected_reward, jnp.log(theta)
  first = jax.nn.softplus(k - difference)
  second = jax.nn.softplus(k + difference)
  # log(θ² - 1) by factors, which keeps θ near 1 exact.
  tie = first + second - jnp.log(theta - 1.0) - jnp.log(theta + 1.0)
  lean = 2.0 * preference - 1.0
  won, lost = jnp.maximum(lean, 0.0), jnp.maximum(-lean, 0.0)
  return won * first + lost * second + (1.0 - jnp.abs(lean)) * tie


@loss("pair")
def eurus(
  chosen_reward: Float32[Array, "*pairs"],
  rejected_reward: Float32[Array, "*pairs"],
  absolute: Bool[Array, "*pairs"],
) -> Float32[Array, "*pairs"]:
  """Bradley-Terry loss with a pull of right answers above zero, wrong below.

      loss = -log σ(chosen - rejected)
             + absolute (-log σ(chosen) - log σ(-rejected))

  Use: for reasoning, where the chosen answer is right and the other wrong, not
  merely better and worse. Do not add centring or margins to the same pairs.

  Args:
    chosen_reward: reward of the preferred response, in log-odds of being right.
    rejected_reward: the same for the other response.
    absolute: which pairs are of a right and a wrong answer; others are only
      compared.

  Returns: one loss per pair; 3 log 2 (log 2 of others) where rewards are 0.

  Reference: Yuan et al. 2024 (https://arxiv.org/abs/2404.02078).

  >>> right = jnp.array([True])
  >>> f"{eurus(jnp.array([1.2]), jnp.array([0.4]), right)[0]:.4f}"
  '1.5474'
  """
  relative = -jax.nn.log_sigmoid(chosen_reward - rejected_reward)
  apart = -jax.nn.log_sigmoid(chosen_reward) - jax.nn.log_sigmoid(
    -rejected_reward
  )
  return relative + jnp.where(absolute, apart, 0.0)


@loss("response")
def reward_bce(
  reward: Float32[Array, "*responses"],
  desirable: Bool[Array, "*responses"],
) -> Float32[Array, "*responses"]:
  """Cross-entropy of a reward model that says whether a response is good.

      loss = -log σ(reward) if desirable else -log σ(-reward)

  Use: where responses have thumbs up or down, or were checked: right or wrong.
  The reward is then a log-odds that means something by itself.

  Args:
    reward: log-odds that the response is good, in nats.
    desirable: whether it is.

  Returns: one loss per response; log 2 where the reward is 0.

  Reference: Dong et al. 2024 (https://arxiv.org/abs/2406.18676), the point-wise
  term; of a head with two outputs, the reward is their difference.

  >>> f"{reward_bce(jnp.array([1.2]), jnp.array([True]))[0]:.4f}"
  '0.2633'
  """
  return -jax.nn.log_sigmoid(jnp.where(desirable, reward, -reward))


@loss("response")
def reward_mse(
  reward: Float32[Array, "*responses"],
  score: Float32[Array, "*responses"],
) -> Float32[Array, "*responses"]:
  """Squared error of a reward model that predicts a score.

      loss = (reward - score)²

  Use: where responses were rated on a scale, such as helpfulness from 0 to 4.

  Args:
    reward: what the model predicts, on the scores' scale.
    score: what the data says.

  Returns: one loss per response; 0 where they agree.

  Reference: Wang et al. 2024 (https://arxiv.org/abs/2406.08673).

  >>> f"{reward_mse(jnp.array([1.2]), jnp.array([1.0]))[0]:.4f}"
  '0.0400'
  """
  return (reward - score) ** 2
