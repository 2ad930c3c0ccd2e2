"""Losses that compare the distributions of good and bad, not single pairs.

Both sort over the whole batch, so that a small batch says little, and the
value of one pair depends on the others.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range


@loss("pair", coupled=True)
def aot(
  chosen_logp: Float32[Array, "*pairs"],
  rejected_logp: Float32[Array, "*pairs"],
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  valid: Bool[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  label_smoothing: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Alignment by optimal transport, paired: margins as a whole should grow.

      loss_i = -(1 - s) log σ(beta d_i) - s log σ(-beta d_i),
      d_i = policy_i - (the reference's margin of the same rank),
      policy = log π(chosen) - log π(rejected), reference likewise

  Use: where the policy's margins should exceed the reference's in
  distribution, whichever pair has which. It needs a large batch.

  Args:
    chosen_logp: log π(y|x) of the preferred response, summed over its response
      tokens, in nats.
    rejected_logp: the same for the other response.
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats. With chosen_logp it tells the
      reference's log-probability, a constant: no gradient flows into it.
    rejected_logratio: the same for the other response.
    valid: which pairs are real; the others are ranked behind them.
    beta: strength of the pull towards the reference; larger stays closer.
    label_smoothing: s, the probability that a pair is labelled backwards.

  Returns: one loss per pair, at the pair whose policy margin it has; log 2
  where policy and reference agree.

  Raises ValueError unless 0 <= label_smoothing < 0.5.

  Reference: Melnyk et al. 2024 (https://arxiv.org/abs/2406.05882). TRL 1.16's
  `aot`; what TRL 0.19 called `aot_pair` is `aot_unpaired`.

  >>> a, b = jnp.array([-2.0, -3.0]), jnp.array([-5.0, -2.4])
  >>> c, d = jnp.array([0.3, -0.2]), jnp.array([-2.4, 1.5])
  >>> values = aot(a, b, c, d, jnp.array([True, True]), beta=0.1)
  >>> f"{values[0]:.4f} {values[1]:.4f}"
  '0.6027 0.7392'
  """
  policy = chosen_logp - rejected_logp
  reference = policy - (chosen_logratio - rejected_logratio)
  return _transported(
    policy, jax.lax.stop_gradient(reference), valid, beta, label_smoothing
  )


@loss("pair", coupled=True)
def aot_unpaired(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  valid: Bool[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  label_smoothing: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Alignment by optimal transport, unpaired: good above bad at every rank.

      loss_i = -(1 - s) log σ(beta d_i) - s log σ(-beta d_i),
      d_i = chosen_i - (the rejected log-ratio of the same rank)

  Use: where chosen and rejected responses belong to different prompts. It
  needs a large batch.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response, of any prompt.
    valid: which pairs are real; the others are ranked behind them.
    beta: strength of the pull towards the reference; larger stays closer.
    label_smoothing: s, the probability that a pair is labelled backwards.

  Returns: one loss per pair, at the entry of its chosen log-ratio; log 2 where
  policy and reference agree.

  Raises ValueError unless 0 <= label_smoothing < 0.5.

  Reference: Melnyk et al. 2024 (https://arxiv.org/abs/2406.05882). TRL 1.16's
  `aot_unpaired`, and 0.19's `aot_pair`.

  >>> a, b = jnp.array([0.3, -0.2]), jnp.array([-2.4, 1.5])
  >>> values = aot_unpaired(a, b, jnp.array([True, True]), beta=0.1)
  >>> f"{values[0]:.4f} {values[1]:.4f}"
  '0.7549 0.5892'
  """
  return _transported(
    chosen_logratio, rejected_logratio, valid, beta, label_smoothing
  )


def _transported(
  above: Array,
  below: Array,
  valid: Array,
  beta: Scalar,
  label_smoothing: Scalar,
) -> Array:
  """The logistic loss of each entry of `above` against its like in rank."""
  check_range("label_smoothing", label_smoothing, 0.0, 0.5)
  # Before anything is done with them, so that their NaN reaches no gradient.
  above, below = (jnp.where(valid, x, 0.0) for x in (above, below))
  margin = beta * (above - _same_rank(above, below, valid))
  kept, swapped = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
  return -(1.0 - label_smoothing) * kept - label_smoothing * swapped


def _same_rank(above: Array, below: Array, valid: Array) -> Array:
  """For each entry of `above`, the entry of `below` that has its rank."""
  ranks = jnp.argsort(_order(above, valid))  # the inverse of a permutation
  ranked = below.reshape(-1)[_order(below, valid)]
  return ranked[ranks].reshape(above.shape)


def _order(x: Array, valid: Array) -> Array:
  # As many are behind in either, so that padding only ever meets padding.
  return jnp.argsort(jnp.where(valid, x, jnp.inf).reshape(-1))
