"""Losses of ranked lists whose pairs weigh by what a swap would cost.

The weights are LambdaLoss's: the change of the discounted cumulative gain if
two items changed places. They are constants, of which no gradient is taken.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.diffusion import denoising_logratio
from jaxpref.losses.listwise import ranked_pairs
from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_choice, check_range, checked


@loss("list")
def lipo(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*lists"]:
  """LambdaRank-weighted DPO (LiPO-λ) loss of each list.

      loss = -sum over score_i > score_j of w_ij log σ(beta (value_i - value_j))
      w_ij = |2^score_i - 2^score_j| · |1 / log(1 + r_i) - 1 / log(1 + r_j)|
      r = rank of the item by its value, 1 the highest; no gradient through w

  Use: for rankings with graded scores, where the top of the list matters most.
  What counts as the top is what the policy ranks there now.

  Equal values rank by their scores: where policy and reference agree all are
  equal, and without an order among them all weights would be 0 and nothing
  would ever be learned.

  Args:
    values: log π(y|x) - log π_ref(y|x) of each response, summed over its
      response tokens, in nats.
    scores: how good each response is, best in [0, 1]: gains grow as powers of
      2 (above 2^64 they stay there, to be finite).
    valid: which items are real.
    beta: strength of the pull towards the reference; larger stays closer. Our
      default is the usual one of DPO.

  Returns: one loss per list, a sum over its pairs; where policy and reference
    agree, log 2 times the sum of weights.

  Reference: Liu et al. 2024, LiPO-λ (https://arxiv.org/abs/2402.01878).

  >>> values, scores = jnp.array([0.3, -0.1]), jnp.array([1.0, 0.0])
  >>> f"{lipo(values, scores, jnp.array([True] * 2)):.4f}"
  '0.3585'
  """
  clean = jnp.where(valid, values, 0.0)
  weight = _swap_cost(_ranks(clean, scores, valid), scores)
  total, _ = _weighted_pairs(weight, beta * clean, scores, valid)
  return total


@loss("list")
def rank_dpo(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  beta: Scalar = 5000.0,
  best: str = "highest",
  rank_by: str = "scores",
  log_base: Scalar = math.e,
  over_pairs: str = "sum",
) -> Float32[Array, "*lists"]:
  """RankDPO loss of each list of images.

      loss = -sum over i preferred to j of w_ij log σ(beta (value_i - value_j))
      w_ij = |2^score_i - 2^score_j| · |1 / log(1 + r_i) - 1 / log(1 + r_j)|
      r = rank of the item by its score, 1 the best

  Use: for several images of one prompt, ranked by scores in [0, 1] such as the
  share of votes each won. Pairs with the best image weigh most; images that
  the votes hardly tell apart teach hardly anything.

  The weights are constants of the data: neither policy nor reference moves
  them, unless rank_by="values".

  The paper leaves seven things open. Four are arguments here: the direction of
  a pair, what is ranked, the base of logarithms, sum or mean. The scale of the
  errors, the target of rectified flow and the noise are decided where values
  come from: arguments of `rank_dpo_values` and `rank_dpo_noise`.

  Equal scores have the same rank and are no pair. By values, equal ones rank
  by their scores.

  Args:
    values: minus half the mean squared error of the policy, less that of the
      reference, as `rank_dpo_values` makes them.
    scores: how good each image is, best in [0, 1]: gains grow as powers of 2
      (above 2^64 they stay there, to be finite).
    valid: which items are real.
    beta: strength of the pull towards the reference. The paper gives none; our
      default is Diffusion-DPO's, for the scale of `values`.
    best: which score is preferred, "highest" or "lowest". The paper writes
      "i > j", which only makes sense as "i is preferred to j"; "lowest" is for
      scores that are ranks, of which 1 is the best.
    rank_by: what r ranks: "scores" as in the text, or "values", what the model
      predicts, as in its overview figure and the LambdaLoss it cites.
    log_base: of the discounts, above 1: e as printed, 2 as LambdaLoss has it.
      It only scales the loss.
    over_pairs: "sum" as printed, or "mean" over the pairs of unequal score.

  Returns: one loss per list; where policy and reference agree, log 2 times the
    sum (or mean) of weights.

  Reference: Karthik et al. 2024 (https://arxiv.org/abs/2410.18013); there is
  no code of the authors.

  >>> values, scores = jnp.array([1e-4, -1e-4]), jnp.array([1.0, 0.0])
  >>> f"{rank_dpo(values, scores, jnp.array([True] * 2)):.4f}"
  '0.1668'
  """
  check_choice("best", best, "highest", "lowest")
  check_choice("rank_by", rank_by, "scores", "values")
  check_choice("over_pairs", over_pairs, "sum", "mean")
  check_range("log_base", log_base, 1.00001, math.inf)
  values = jnp.where(valid, values, 0.0)
  preferred = scores if best == "highest" else -scores
  if rank_by == "scores":
    rank = _ranks(preferred, preferred, valid, ties_share=True)
  else:
    rank = _ranks(values, preferred, valid)
  weight = _swap_cost(rank, scores) * jnp.log(log_base)
  total, count = _weighted_pairs(weight, beta * values, preferred, valid)
  return total / jnp.maximum(count, 1) if over_pairs == "mean" else total


@checked
def rank_dpo_noise(
  noise: Float32[Array, "*lists items y x c"],
  *,
  shared_noise: bool = False,
) -> Float32[Array, "*lists items y x c"]:
  """The noise that RankDPO adds to the images of each list.

  Args:
    noise: drawn independently for each image, as the paper prints it.
    shared_noise: gives all images of a list the noise of its first, as the
      code of Diffusion-DPO does for the two of a pair.

  Returns: noise of the same shape.

  Reference: Karthik et al. 2024 (https://arxiv.org/abs/2410.18013).
  """
  if not shared_noise:
    return noise
  return jnp.broadcast_to(noise[..., :1, :, :, :], noise.shape)


@checked
def rank_dpo_values(
  prediction: Float32[Array, "*lists items y x c"],
  ref_prediction: Float32[Array, "*lists items y x c"],
  noise: Float32[Array, "*lists items y x c"],
  latent: Float32[Array, "*lists items y x c"],
  *,
  predicts: str = "noise",
  error: str = "half_mean",
) -> Float32[Array, "*lists items"]:
  """RankDPO's value of each image from two models' predictions.

      value = error(ref_prediction) - error(prediction)

  With its defaults it is `denoising_logratio`.

  Args:
    prediction: what the trained model predicts from the noised latent.
    ref_prediction: what the frozen reference predicts from it.
    noise: what was added.
    latent: the image without noise.
    predicts: the target: "noise" (SDXL), or "velocity", which is noise -
      latent (SD3's rectified flow, for which the paper prints no formula).
    error: "half_mean", half the squared error averaged over an image, which
      Diffusion-DPO's beta is for; "mean"; or "sum", as the paper prints it.
      Its beta must follow: 5000 by half_mean is 2500 by mean.

  Returns: one value per image; 0 where both models predict the same.

  Reference: Karthik et al. 2024 (https://arxiv.org/abs/2410.18013).
  """
  scales = {
    "half_mean": 1.0,
    "mean": 2.0,
    "sum": 2.0 * math.prod(latent.shape[-3:]),
  }
  check_choice("predicts", predicts, "noise", "velocity")
  check_choice("error", error, *scales)
  target = noise if predicts == "noise" else noise - latent
  return scales[error] * denoising_logratio(prediction, ref_prediction, target)


def _ranks(
  by: Array, then_by: Array, valid: Array, ties_share: bool = False
) -> Array:
  """1 + the number of valid items ahead, by the larger of the first array.

  Equal ones go by the second, and then by place: which of two that are equal
  in both comes first changes no sum over pairs.
  """
  first = lambda x: (x[..., None, :], x[..., :, None])  # j, i
  other, own = first(by)
  ahead = other > own
  if not ties_share:
    other_then, own_then = first(then_by)
    place = jnp.arange(by.shape[-1])
    earlier = jnp.broadcast_to(place[None, :] < place[:, None], ahead.shape)
    tie = (other_then > own_then) | ((other_then == own_then) & earlier)
    ahead = ahead | ((other == own) & tie)
  return 1 + jnp.sum(ahead & valid[..., None, :], axis=-1)


def _swap_cost(rank: Array, scores: Array) -> Array:
  """By how much the discounted gain changes if two items change places."""
  # Clipped: powers of 2 overflow, and NaN stands in padding.
  gain = jnp.exp2(jnp.clip(jnp.nan_to_num(scores), max=64.0))
  discount = 1.0 / jnp.log1p(rank.astype(jnp.float32))
  apart = lambda x: jnp.abs(x[..., :, None] - x[..., None, :])
  return jax.lax.stop_gradient(apart(gain) * apart(discount))


def _weighted_pairs(
  weight: Array, z: Array, scores: Array, valid: Array
) -> tuple[Array, Array]:
  """Of -log σ over the ranked pairs, and their number."""
  losses = jax.nn.softplus(z[..., None, :] - z[..., :, None])
  ranked = ranked_pairs(scores, valid)
  total = jnp.sum(jnp.where(ranked, weight * losses, 0.0), axis=(-2, -1))
  return total, jnp.sum(ranked, axis=(-2, -1))
