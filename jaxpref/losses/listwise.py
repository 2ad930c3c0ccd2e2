"""Losses of several responses to one prompt, by the data's own scores.

A list is the trailing axis; `valid` says which items are real. Lists with
fewer than two valid items have loss 0 and no gradient. Ties are treated alike,
so the order of items never matters.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, checked


@checked
def ranked_pairs(
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
) -> Bool[Array, "*lists items items"]:
  """Whether item i (last axis but one) scores higher than item j (last axis).

  Args:
    scores: how good each item is; larger is better.
    valid: which items are real; the others are in no pair.

  Returns: True for each pair that the scores rank; never for a tie.
  """
  higher = scores[..., :, None] > scores[..., None, :]
  return higher & valid[..., :, None] & valid[..., None, :]


@loss("list")
def plackett_luce(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*lists"]:
  """Plackett-Luce (listwise DPO) loss of each list.

      loss = -sum over k of log softmax(beta values_k, values_{k+1}, ...)_k
      items in the order of their scores, best first

  Use: for full rankings: the chance to draw the best item from all, then the
  next from the rest, and so on. With two items it is DPO.

  Ties: each item is drawn from itself and the items of lower score, so equals
  do not compete.

  Args:
    values: log π(y|x) - log π_ref(y|x) of each response, summed over its
      response tokens, in nats.
    scores: how good each response is; only their order counts.
    valid: which items are real.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per list; log K! for K ranked items where policy and
    reference agree.

  Reference: Rafailov et al. 2023, appendix A.3
  (https://arxiv.org/abs/2305.18290).

  >>> values, scores = jnp.array([0.3, -0.1, 0.6]), jnp.array([3.0, 2.0, 1.0])
  >>> f"{plackett_luce(values, scores, jnp.array([True] * 3)):.4f}"
  '1.8244'
  """
  z = beta * jnp.where(valid, values, 0.0)
  ahead = z[..., None, :] - z[..., :, None]  # of item i (rows) by item j
  drawn_from = ranked_pairs(scores, valid) | _diagonal(valid)
  ahead = jnp.where(drawn_from, ahead, -jnp.inf)
  each = jax.nn.logsumexp(ahead, axis=-1)
  return _of_lists(jnp.sum(each, axis=-1), valid)


@loss("list")
def listwise_softmax(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  beta: Scalar = 0.1,
  alpha: Scalar = 1.0,
) -> Float32[Array, "*lists"]:
  """Listwise softmax (InfoNCA) loss of each list.

      loss = -sum over items of softmax(scores / alpha) log softmax(beta values)

  Use: where scores say how much better, not only which: the policy's rewards
  should differ as the scores do. With two items it is DPO with soft labels.

  Ties get the same target, which pulls their values together.

  Args:
    values: log π(y|x) - log π_ref(y|x) of each response, summed over its
      response tokens, in nats.
    scores: how good each response is; their differences count.
    valid: which items are real.
    beta: strength of the pull towards the reference; larger stays closer.
    alpha: temperature of the scores; small makes the best response the target.
      1 is ours: the authors' code has 1e-4, which is almost that.

  Returns: one loss per list; log K for K items where policy and reference
    agree.

  Reference: Chen et al. 2024, InfoNCA (https://arxiv.org/abs/2402.05369), whose
  code has beta 0.1 by default and 0.01 in its recipes.

  >>> values, scores = jnp.array([0.3, -0.1]), jnp.array([2.0, 1.0])
  >>> f"{listwise_softmax(values, scores, jnp.array([True] * 2)):.4f}"
  '0.6841'
  """
  target = _softmax_target(scores, valid, alpha)
  z = jnp.where(valid, beta * jnp.where(valid, values, 0.0), _NEVER)
  losses = -jnp.sum(target * jax.nn.log_softmax(z, axis=-1), axis=-1)
  return _of_lists(losses, valid)


@loss("list")
def nca_listwise(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  beta: Scalar = 0.1,
  alpha: Scalar = 1.0,
) -> Float32[Array, "*lists"]:
  """Noise contrastive alignment loss of each list.

      loss = -sum of softmax(scores / alpha) log σ(z) - mean of log σ(-z)
      z = beta values

  Use: like `listwise_softmax`, where the likelihood of the best responses must
  not fall: each response is measured against the reference, not only against
  the others.

  Ties get the same target.

  Args:
    values: log π(y|x) - log π_ref(y|x) of each response, summed over its
      response tokens, in nats.
    scores: how good each response is; their differences count.
    valid: which items are real.
    beta: strength of the pull towards the reference; larger stays closer.
    alpha: temperature of the scores; small makes the best response the target.
      1 is ours: the authors' code has 1e-4, which is almost that.

  Returns: one loss per list; 2 log 2 where policy and reference agree.

  Reference: Chen et al. 2024, NCA (https://arxiv.org/abs/2402.05369), whose
  code has beta 0.1 by default and 0.01 in its recipes.

  >>> values, scores = jnp.array([0.3, -0.1]), jnp.array([2.0, 1.0])
  >>> f"{nca_listwise(values, scores, jnp.array([True] * 2)):.4f}"
  '1.3818'
  """
  z = beta * jnp.where(valid, values, 0.0)
  target = _softmax_target(scores, valid, alpha)
  pulled = jnp.sum(target * jax.nn.softplus(-z), axis=-1)
  pushed = jnp.sum(jnp.where(valid, jax.nn.softplus(z), 0.0), axis=-1)
  count = jnp.maximum(jnp.sum(valid, axis=-1), 1)
  return _of_lists(pulled + pushed / count, valid)


@loss("list")
def all_pairs(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*lists"]:
  """DPO loss of all pairs of each list, summed.

      loss = -sum over score_i > score_j of log σ(beta (value_i - value_j))

  Use: for short rankings whose every comparison counts. A list of K weighs as
  much as K (K - 1) / 2 pairs; see `all_pairs_mean` for lists of all sizes.

  Ties are no pair.

  Args:
    values: log π(y|x) - log π_ref(y|x) of each response, summed over its
      response tokens, in nats.
    scores: how good each response is; only their order counts.
    valid: which items are real.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per list; log 2 a ranked pair where policy and reference
    agree.

  Reference: Rafailov et al. 2023, eq. 7, of each pair
  (https://arxiv.org/abs/2305.18290).

  >>> values, scores = jnp.array([0.3, -0.1, 0.6]), jnp.array([3.0, 2.0, 1.0])
  >>> f"{all_pairs(values, scores, jnp.array([True] * 3)):.4f}"
  '2.1104'
  """
  total, _ = _sum_of_pairs(values, scores, valid, beta)
  return total


@loss("list")
def all_pairs_mean(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*lists"]:
  """DPO loss of all pairs of each list, averaged.

      loss = -mean over score_i > score_j of log σ(beta (value_i - value_j))

  Use: like `all_pairs`, where lists differ in length and shall weigh the same.

  Ties are no pair: the mean is over the pairs that the scores rank.

  Args:
    values: log π(y|x) - log π_ref(y|x) of each response, summed over its
      response tokens, in nats.
    scores: how good each response is; only their order counts.
    valid: which items are real.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per list; log 2 where policy and reference agree.

  Reference: Rafailov et al. 2023, eq. 7, of each pair
  (https://arxiv.org/abs/2305.18290); averaged as the reward model's loss of
  Ouyang et al. 2022, eq. 1 (https://arxiv.org/abs/2203.02155).

  >>> values, scores = jnp.array([0.3, -0.1, 0.6]), jnp.array([3.0, 2.0, 1.0])
  >>> f"{all_pairs_mean(values, scores, jnp.array([True] * 3)):.4f}"
  '0.7035'
  """
  total, count = _sum_of_pairs(values, scores, valid, beta)
  return total / jnp.maximum(count, 1)


# Finite, since softmax's gradient of -inf is NaN in a list of none.
_NEVER = -1e30


def _diagonal(valid: Array) -> Array:
  eye = jnp.eye(valid.shape[-1], dtype=bool)
  return jnp.broadcast_to(eye, (*valid.shape, valid.shape[-1]))


def _of_lists(losses: Array, valid: Array) -> Array:
  """Nothing is to be learned from one item."""
  return jnp.where(jnp.sum(valid, axis=-1) >= 2, losses, 0.0)


def _softmax_target(scores: Array, valid: Array, alpha: Scalar) -> Array:
  scores = jnp.where(valid, scores, 0.0) / alpha
  target = jax.nn.softmax(jnp.where(valid, scores, _NEVER), axis=-1)
  return jnp.where(valid, target, 0.0)


def _sum_of_pairs(
  values: Array, scores: Array, valid: Array, beta: Scalar
) -> tuple[Array, Array]:
  """Of -log σ over the ranked pairs, and their number."""
  z = beta * jnp.where(valid, values, 0.0)
  losses = jax.nn.softplus(z[..., None, :] - z[..., :, None])
  ranked = ranked_pairs(scores, valid)
  total = jnp.sum(jnp.where(ranked, losses, 0.0), axis=(-2, -1))
  return total, jnp.sum(ranked, axis=(-2, -1))
