"""Losses of lists that rank by the policy's own likelihood: no reference.

Each also imitates the best response. A list is the trailing axis; `valid` says
which items are real. Lists with fewer than two valid items have loss 0 and no
gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.listwise import ranked_pairs
from jaxpref.losses.registry import loss
from jaxpref.types import Scalar


@loss("list")
def rrhf(
  mean_logp: Float32[Array, "*lists items"],
  logp: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  rank_weight: Scalar = 1.0,
  sft_weight: Scalar = 1.0,
) -> Float32[Array, "*lists"]:
  """Rank responses to align human feedback (RRHF) loss of each list.

      loss = rank_weight sum over score_i > score_j of max(0, p_j - p_i)
             - sft_weight logp of the best,   p = mean_logp

  Use: as the simplest ranking loss: no reference, no scale to tune. It lets go
  of pairs in the right order, however near.

  Ties are no pair; of several best, the mean is imitated.

  Args:
    mean_logp: log π(y|x) of each response, averaged over its response tokens,
      in nats a token.
    logp: the same, summed over them, in nats.
    scores: how good each response is; only their order counts.
    valid: which items are real.
    rank_weight: weight of the ranking.
    sft_weight: weight of the best response's negative log-likelihood, summed
      over its tokens.

  Returns: one loss per list; the best response's negative log-likelihood where
    all are ranked as scored.

  Reference: Yuan et al. 2023 (https://arxiv.org/abs/2304.05302).
  The authors' code has rank_weight 100 and divides the likelihood by the
  length that prompt and response are padded to: sft_weight 1 / length.

  >>> p, length = jnp.array([-0.6, -0.5]), jnp.array([3.0, 4.0])
  >>> scores, valid = jnp.array([2.0, 1.0]), jnp.array([True, True])
  >>> f"{rrhf(p, p * length, scores, valid):.4f}"
  '1.9000'
  """
  p = jnp.where(valid, mean_logp, 0.0)
  wrong = jax.nn.relu(p[..., None, :] - p[..., :, None])
  ranked = ranked_pairs(scores, valid)
  rank = jnp.sum(jnp.where(ranked, wrong, 0.0), axis=(-2, -1))
  losses = rank_weight * rank - sft_weight * _best(logp, scores, valid)
  return jnp.where(jnp.sum(valid, axis=-1) >= 2, losses, 0.0)


@loss("list")
def pro(
  mean_logp: Float32[Array, "*lists items"],
  logp: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  sft_weight: Scalar = 0.05,
) -> Float32[Array, "*lists"]:
  """Preference ranking optimization loss of each list.

      loss = -sum over k of log softmax(p_k T_k, p_i (score_k - score_i), ...)_k
             - sft_weight (K - 1)² logp of the best,   p = mean_logp
      i over the items of lower score than k;  T_k = max of score_k - score_i

  Use: for rankings with scores and without a reference. The gaps between scores
  are temperatures of the log-probs: scores on another scale are another loss.

  Ties: each item is compared with the items of lower score; of several best,
  the mean is imitated.

  Args:
    mean_logp: log π(y|x) of each response, averaged over its response tokens,
      in nats a token.
    logp: the same, summed over them, in nats.
    scores: how good each response is; their differences count.
    valid: which items are real: K of them.
    sft_weight: weight of the best response's negative log-likelihood, summed
      over its tokens, which grows with the number of comparisons.

  Returns: one loss per list; log 2 plus the likelihood's part for two items of
    one p.

  Reference: Song et al. 2023 (https://arxiv.org/abs/2306.17492), and its
  authors' code, which sums the second part over tokens.

  >>> p, length = jnp.array([-0.6, -0.5]), jnp.array([3.0, 4.0])
  >>> scores, valid = jnp.array([2.0, 1.0]), jnp.array([True, True])
  >>> f"{pro(p, p * length, scores, valid):.4f}"
  '0.8344'
  """
  p = jnp.where(valid, mean_logp, 0.0)
  ranked = ranked_pairs(scores, valid)
  clean = jnp.where(valid, scores, 0.0)
  apart = jnp.where(ranked, clean[..., :, None] - clean[..., None, :], 0.0)
  own = p * jnp.max(apart, axis=-1)
  against = apart * p[..., None, :] - own[..., :, None]
  against = jnp.where(ranked, against, -jnp.inf)
  itself = jnp.zeros_like(own)[..., None]
  drawn_from = jnp.concatenate([itself, against], axis=-1)
  rank = jnp.sum(jax.nn.logsumexp(drawn_from, axis=-1), axis=-1)
  comparisons = (jnp.sum(valid, axis=-1, dtype=jnp.float32) - 1.0) ** 2
  losses = rank - sft_weight * comparisons * _best(logp, scores, valid)
  return jnp.where(jnp.sum(valid, axis=-1) >= 2, losses, 0.0)


def _best(x: Array, scores: Array, valid: Array) -> Array:
  """Of the item with the highest score; the mean of several."""
  scores = jnp.where(valid, scores, -jnp.inf)
  best = valid & (scores == jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(jnp.where(best, x, 0.0), axis=-1)
  return total / jnp.maximum(jnp.sum(best, axis=-1), 1)
