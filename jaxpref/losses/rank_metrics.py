"""How well values order responses: metrics of lists and of pairs with ties."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.types import checked


@checked
def kendall_tau(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
) -> Float32[Array, "*lists"]:
  """Rank correlation between a model's values and the data's scores.

      tau = (agreeing - disagreeing) / √(untied by value · untied by score)

  Use: to judge the order of whole lists, all places alike.

  Args:
    values: the model's, of each item: rewards, implicit rewards or others.
    scores: the data's, larger is better.
    valid: which items are not padding.

  Returns: one correlation per list, from -1 to 1: tau-b, which allows for ties
  on either side; 0 where all values or all scores are tied.

  Reference: Kendall 1945 (https://doi.org/10.1093/biomet/33.3.239).

  >>> order = jnp.array([[3.0, 2.0, 1.0]]), jnp.array([[3.0, 1.0, 2.0]])
  >>> f"{kendall_tau(*order, jnp.ones((1, 3), bool))[0]:.4f}"
  '0.3333'
  """
  by_value = _signs(values, valid)
  by_score = _signs(scores, valid)
  both = (-2, -1)
  untied = jnp.sum(by_value**2, axis=both) * jnp.sum(by_score**2, axis=both)
  agreement = jnp.sum(by_value * by_score, axis=both)
  return agreement / jnp.sqrt(jnp.maximum(untied, 1.0))


@checked
def ndcg(
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
) -> Float32[Array, "*lists"]:
  """Discounted gain of the order that values give, of the best order's gain.

      ndcg = Σ_i G_i / D(rank by value of i)  /  Σ_i G_i / D(rank by score of i)
      G    = 2^score - 1,   D(rank) = log2(1 + rank)

  Use: to judge the order of whole lists by what stands on top. It is what
  LambdaRank weights, as in LiPO-λ and RankDPO, are made for.

  Items of equal value share the mean discount of their places, so that a model
  without an opinion gets what a random order gets.

  Args:
    values: the model's, of each item.
    scores: the data's, at least 0; gains stop growing at a score of 60.
    valid: which items are not padding.

  Returns: one value per list, at most 1, where the best stand first; 0 where no
  item has a gain.

  Reference: Järvelin and Kekäläinen 2002
  (https://doi.org/10.1145/582415.582418), with the gain of Burges et al. 2005.

  >>> order = jnp.array([[3.0, 1.0, 2.0]]), jnp.array([[2.0, 1.0, 0.0]])
  >>> f"{ndcg(*order, jnp.ones((1, 3), bool))[0]:.4f}"
  '0.9639'
  """
  scores = jnp.where(valid, scores, 0.0)
  gains = jnp.where(valid, jnp.exp2(jnp.minimum(scores, 60.0)) - 1.0, 0.0)
  reached = jnp.sum(gains * _discounts(values, valid), axis=-1)
  best = jnp.sum(gains * _discounts(scores, valid), axis=-1)
  return jnp.where(best > 0.0, reached / jnp.where(best > 0.0, best, 1.0), 0.0)


@checked
def tie_calibrated_accuracy(
  chosen_reward: Float32[Array, "*sets pairs"],
  rejected_reward: Float32[Array, "*sets pairs"],
  preference: Float32[Array, "*sets pairs"],
  valid: Bool[Array, "*sets pairs"],
) -> Float32[Array, "*sets"]:
  """Accuracy over better, tied and worse, at the best threshold for a tie.

      accuracy = max over e of the mean of [e-sign(chosen - rejected) is right]

  Use: to compare reward models on labels with ties, whatever their scale: a
  tie is predicted where the rewards differ by at most e.

  Args:
    chosen_reward: reward of the first of each pair.
    rejected_reward: reward of the second.
    preference: 1 where the first is better, 0 the second, 0.5 a tie; between,
      the nearer end.
    valid: which pairs are not padding.

  Returns: one accuracy per set of pairs; 0 where nothing is valid.

  Reference: Deutsch et al. 2023 (https://arxiv.org/abs/2305.14324), as Liu et
  al. 2025 use it for VideoReward (https://arxiv.org/abs/2501.13918).

  >>> x = jnp.array([0.8, 0.1]), jnp.zeros(2), jnp.array([1.0, 0.5])
  >>> f"{tie_calibrated_accuracy(*x, jnp.ones(2, bool))}"
  '1.0'
  """
  difference = jnp.where(valid, chosen_reward - rejected_reward, 0.0)
  label = jnp.sign(jnp.where(valid, preference, 0.5) - 0.5)
  # What calling a pair a tie, instead of by its sign, wins or loses. Padding is
  # a tie both ways: nothing.
  gain = (label == 0.0).astype(jnp.int32) - (jnp.sign(difference) == label)
  size, gains = jax.lax.sort(
    (jnp.abs(difference), gain), dimension=-1, num_keys=1
  )
  # Pairs of one size become ties together: only sums at the last one count.
  last = jnp.concatenate(
    [size[..., 1:] > size[..., :-1], jnp.ones_like(valid[..., :1])], axis=-1
  )
  best = jnp.max(jnp.where(last, jnp.cumsum(gains, axis=-1), 0), axis=-1)
  by_sign = jnp.sum(valid & (jnp.sign(difference) == label), axis=-1)
  count = jnp.sum(valid, axis=-1)
  # At least 0: the threshold may also lie below every difference.
  return (by_sign + jnp.maximum(best, 0)) / jnp.maximum(count, 1)


def _signs(
  x: Float32[Array, "*lists items"], valid: Bool[Array, "*lists items"]
) -> Float32[Array, "*lists items items"]:
  """Sign of every difference; 0 where one of the two is padding."""
  x = jnp.where(valid, x, 0.0)
  both = valid[..., :, None] & valid[..., None, :]
  return jnp.where(both, jnp.sign(x[..., :, None] - x[..., None, :]), 0.0)


def _discounts(
  x: Float32[Array, "*lists items"], valid: Bool[Array, "*lists items"]
) -> Float32[Array, "*lists items"]:
  """1 / log2(1 + rank) of each item, averaged over the places that ties share.

  Padding stands last, so that it takes nobody's place.
  """
  x = jnp.where(valid, x, -jnp.inf)
  before = jnp.sum(x[..., None, :] > x[..., :, None], axis=-1)
  through = jnp.sum(x[..., None, :] >= x[..., :, None], axis=-1)
  places = 1.0 / jnp.log2(2.0 + jnp.arange(x.shape[-1]))
  sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(places)])
  return (sums[through] - sums[before]) / (through - before)
