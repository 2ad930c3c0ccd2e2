"""What to watch beside a loss: rewards, accuracy, divergence, calibration.

One value a unit where that is possible, so that means stay exact whatever the
micro-batches. Padding, where a function takes `valid` or `mask`, may hold NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.kl import kl_k3
from jaxpref.types import Scalar, checked


@checked
def implicit_reward(
  logratio: Float32[Array, "*responses"], *, beta: Scalar = 0.1
) -> Float32[Array, "*responses"]:
  """Reward of each response that a policy trained by DPO stands for.

      reward = beta (log π - log π_ref)

  Use: to compare responses to one prompt; between prompts it means nothing,
  since a constant of each prompt is missing.

  Args:
    logratio: log π(y|x) - log π_ref(y|x), summed over response tokens, in nats.
    beta: that of the loss.

  Returns: one reward per response; 0 where policy and reference agree.

  Reference: Rafailov et al. 2023, eq. 5 (https://arxiv.org/abs/2305.18290).

  >>> f"{implicit_reward(jnp.array([2.0]))[0]:.4f}"
  '0.2000'
  """
  return beta * logratio


@checked
def reward_margin(
  chosen_reward: Float32[Array, "*pairs"],
  rejected_reward: Float32[Array, "*pairs"],
) -> Float32[Array, "*pairs"]:
  """How far the chosen response's reward is above the other's.

      margin = chosen - rejected

  Use: σ(margin) is the probability that the chosen one is preferred, which
  `brier_score` and `calibration` judge.

  Args:
    chosen_reward: reward of the preferred response, implicit or a model's.
    rejected_reward: reward of the other response.

  Returns: one margin per pair; 0 where the rewards are equal.

  >>> f"{reward_margin(jnp.array([0.2]), jnp.array([-0.1]))[0]:.4f}"
  '0.3000'
  """
  return chosen_reward - rejected_reward


@checked
def reward_accuracy(
  chosen_reward: Float32[Array, "*pairs"],
  rejected_reward: Float32[Array, "*pairs"],
) -> Float32[Array, "*pairs"]:
  """Whether the chosen response has strictly the higher reward.

      accuracy = 1 if chosen > rejected else 0

  Use: with `reward_tie` beside it. At the first step of DPO all rewards are 0:
  an accuracy of 0, all of it ties.

  Args:
    chosen_reward: reward of the preferred response.
    rejected_reward: reward of the other response.

  Returns: 1 or 0 per pair; a tie counts 0, as in TRL. Add half of `reward_tie`
  where ties should count a half, as diffusers counts them.

  >>> f"{reward_accuracy(jnp.array([0.2]), jnp.array([-0.1]))[0]}"
  '1.0'
  """
  return (chosen_reward > rejected_reward).astype(jnp.float32)


@checked
def reward_tie(
  chosen_reward: Float32[Array, "*pairs"],
  rejected_reward: Float32[Array, "*pairs"],
) -> Float32[Array, "*pairs"]:
  """Whether both responses have exactly the same reward.

      tie = 1 if chosen = rejected else 0

  Use: to tell a model that ranks wrongly from one that does not rank.

  Args:
    chosen_reward: reward of the preferred response.
    rejected_reward: reward of the other response.

  Returns: 1 or 0 per pair.

  >>> f"{reward_tie(jnp.array([0.2]), jnp.array([0.2]))[0]}"
  '1.0'
  """
  return (chosen_reward == rejected_reward).astype(jnp.float32)


@checked
def sequence_kl(
  token_logp: Float32[Array, "*sequences tokens"],
  ref_token_logp: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
) -> Float32[Array, "*sequences"]:
  """Estimate of the divergence from the reference, by each sampled sequence.

      kl = Σ_t (e^-d_t - 1 + d_t),   d_t = log π(y_t) - log π_ref(y_t)

  Use: to watch how far the policy has moved: its mean over sequences sampled
  from the policy is KL(π‖π_ref), with less noise than the mean of Σ d_t.

  Args:
    token_logp: log-probability of each token of a sequence sampled from the
      policy, in nats.
    ref_token_logp: the same under the reference.
    mask: which tokens belong to the response.

  Returns: one estimate per sequence, in nats, never negative; 0 where policy
  and reference agree.

  Reference: Schulman 2020, k3, summed by the chain rule
  (http://joschu.net/blog/kl-approx.html).

  >>> logp = jnp.array([[-0.5, -1.0]]), jnp.array([[-0.7, -0.9]])
  >>> f"{sequence_kl(*logp, jnp.ones((1, 2), bool))[0]:.4f}"
  '0.0239'
  """
  tokens = kl_k3(
    jnp.where(mask, token_logp, 0.0), jnp.where(mask, ref_token_logp, 0.0)
  )
  return jnp.sum(tokens, axis=-1)


@checked
def brier_score(
  probability: Float32[Array, "*pairs"],
  preference: Float32[Array, "*pairs"],
) -> Float32[Array, "*pairs"]:
  """Squared error of each predicted probability of a preference.

      score = (probability - preference)²

  Use: to judge predicted preferences by one number, that rewards both ranking
  right and saying how sure one is.

  Args:
    probability: predicted probability that the first of the pair is preferred.
    preference: how often it was: 1, 0, 0.5 for a tie, or between.

  Returns: one score per pair, from 0 to 1; 0.25 for a guess at a hard label.

  Reference: Brier 1950, Verification of forecasts expressed in terms of
  probability (Monthly Weather Review 78).

  >>> f"{brier_score(jnp.array([0.8]), jnp.array([1.0]))[0]:.4f}"
  '0.0400'
  """
  return (probability - preference) ** 2


class Calibration(NamedTuple):
  """Sums over the pairs in each bin of confidence; those of two batches add."""

  count: Float32[Array, "*sets bins"]  # type: ignore[assignment]
  predicted: Float32[Array, "*sets bins"]  # sum of the confidences
  observed: Float32[Array, "*sets bins"]  # sum of how often they were right


@checked
def calibration(
  probability: Float32[Array, "*sets pairs"],
  preference: Float32[Array, "*sets pairs"],
  valid: Bool[Array, "*sets pairs"],
  *,
  bins: int = 10,
) -> Calibration:
  """Predicted and observed preferences, in bins of confidence (0.5 to 1).

      confidence = max(p, 1 - p),   right = y if p > ½, 1 - y if p < ½, else ½

  Use: to draw how often predictions of each confidence are right, and for
  `calibration_error`. Which of a pair stands first does not matter.

  Args:
    probability: p, the predicted probability that the first one is preferred.
    preference: y, how often it was: 1, 0, 0.5 for a tie, or between.
    valid: which pairs are not padding.
    bins: how many, of equal width; 10 is ours.

  Returns: three sums a bin; divide by `count` for means.

  Reference: Guo et al. 2017, section 2 (https://arxiv.org/abs/1706.04599), with
  the two classes folded into one.

  >>> p, y = jnp.array([0.9, 0.2]), jnp.array([1.0, 1.0])
  >>> calibration(p, y, jnp.array([True, True]), bins=2).count.tolist()
  [0.0, 2.0]
  """
  p = jnp.where(valid, probability, 0.5)
  y = jnp.where(valid, preference, 0.5)
  confidence = jnp.maximum(p, 1.0 - p)
  right = jnp.where(p > 0.5, y, jnp.where(p < 0.5, 1.0 - y, 0.5))
  # Bins are closed on the right; the first one also holds its left end.
  bin_ = jnp.ceil((confidence - 0.5) * (2 * bins)).astype(jnp.int32) - 1
  member = jax.nn.one_hot(jnp.clip(bin_, 0, bins - 1), bins)
  member = jnp.where(valid[..., None], member, 0.0)
  sums = [
    jnp.sum(member * each[..., None], axis=-2)
    for each in (jnp.ones_like(p), confidence, right)
  ]
  return Calibration(*sums)


@checked
def calibration_error(
  probability: Float32[Array, "*sets pairs"],
  preference: Float32[Array, "*sets pairs"],
  valid: Bool[Array, "*sets pairs"],
  *,
  bins: int = 10,
) -> Float32[Array, "*sets"]:
  """Expected calibration error of predicted preferences.

      error = Σ_bins count / n |mean confidence - mean right|

  Use: to see whether a reward model, or a policy's implicit reward, is as sure
  as it is right. Beside an accuracy: a constant guess at the base rate is
  calibrated too.

  Args: as in `calibration`.

  Returns: one error per set of pairs, from 0 to 1; 0 where nothing is valid.

  Reference: Guo et al. 2017, eq. 3 (https://arxiv.org/abs/1706.04599).

  >>> p, y = jnp.array([0.9, 0.2]), jnp.array([1.0, 1.0])
  >>> f"{calibration_error(p, y, jnp.array([True, True]), bins=2):.4f}"
  '0.3500'
  """
  sums = calibration(probability, preference, valid, bins=bins)
  gaps = jnp.sum(jnp.abs(sums.predicted - sums.observed), axis=-1)
  return gaps / jnp.maximum(jnp.sum(sums.count, axis=-1), 1.0)
