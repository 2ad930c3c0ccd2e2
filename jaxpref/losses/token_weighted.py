"""Pair losses that look at single tokens: lengths, weights and divergences.

The statistics of a sequence's tokens are functions of their own, so that they
serve every other pair loss too.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, checked


@checked
def ld_split(
  token_logp: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  shared_length: Int32[Array, "*sequences"],
) -> tuple[Float32[Array, "*sequences"], Float32[Array, "*sequences"]]:
  """Sums of a response's first tokens, and of those after them.

  Log-ratios may stand for log-probabilities, as for `ld_dpo`: sums are linear.

  Args:
    token_logp: log-probability of each token, in nats.
    mask: which tokens are of the response.
    shared_length: how many of them the first sum takes: for `ld_dpo`, the
      length of the shorter response of the pair.

  Returns: the two sums, in nats.
  """
  logp = jnp.where(mask, token_logp, 0.0)
  place = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)  # from 1
  shared = place <= shared_length[..., None]
  first = jnp.sum(jnp.where(shared, logp, 0.0), axis=-1)
  return first, jnp.sum(jnp.where(shared, 0.0, logp), axis=-1)


@checked
def ld_logp(
  token_logp: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  shared_length: Int32[Array, "*sequences"],
  *,
  alpha: Scalar = 0.5,
) -> Float32[Array, "*sequences"]:
  """Length-desensitised log-probability of each response.

      logp = sum_{t <= k} logp_t + alpha sum_{t > k} logp_t,   k shared_length

  Any pair loss takes it for the sum over tokens, of policy and reference alike.

  Args:
    token_logp: log-probability of each token, in nats.
    mask: which tokens are of the response.
    shared_length: length of the shorter response of the pair.
    alpha: weight of the tokens past it, 0 to 1; 1 is the plain sum. The
      default is ours.

  Returns: one log-probability per response, in nats.

  Reference: Liu et al. 2024 (https://arxiv.org/abs/2409.06411).
  """
  shared, tail = ld_split(token_logp, mask, shared_length)
  return shared + alpha * tail


@loss("pair")
def ld_dpo(
  chosen_shared_logratio: Float32[Array, "*pairs"],
  rejected_shared_logratio: Float32[Array, "*pairs"],
  chosen_tail_logratio: Float32[Array, "*pairs"],
  rejected_tail_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  alpha: Scalar = 0.5,
) -> Float32[Array, "*pairs"]:
  """Length-desensitised DPO loss of each pair.

      loss = -log σ(beta (chosen - rejected))
      each = shared + alpha tail

  Use: where DPO makes answers longer: the tokens that only the longer response
  has weigh less. Tune alpha, from 0 to 1; at 1 it is DPO.

  Args:
    chosen_shared_logratio: log π - log π_ref of the preferred response, summed
      over its first k tokens, k the length of the shorter response (see
      `ld_split`), in nats.
    rejected_shared_logratio: the same for the other response.
    chosen_tail_logratio: the same, summed over the tokens after them.
    rejected_tail_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    alpha: weight of the tokens past the shorter response; the default is ours.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Liu et al. 2024 (https://arxiv.org/abs/2409.06411). TRL 1.16 has
  alpha as ld_alpha.

  >>> none, tail = jnp.zeros(1), jnp.array([2.0])
  >>> f"{ld_dpo(tail, -tail, tail, none)[0]:.4f}"
  '0.4741'
  """
  chosen = chosen_shared_logratio + alpha * chosen_tail_logratio
  rejected = rejected_shared_logratio + alpha * rejected_tail_logratio
  return jax.nn.softplus(-beta * (chosen - rejected))


@checked
def wpo_log_weight(
  token_logp: Float32[Array, "*sequences tokens"],
  token_log_sum_sq: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
) -> Float32[Array, "*sequences"]:
  """How likely the policy would have said a response, against its habit.

      log w = mean over tokens of log π(y_t) - log sum_v π(v)²

  Args:
    token_logp: log-probability of each token, in nats.
    token_log_sum_sq: log of the sum of squared probabilities at each token,
      the likelihood that a token drawn there has on average.
    mask: which tokens are of the response.

  Returns: one log-weight per response, in nats a token; 0 without a token.

  Reference: Zhou et al. 2024 (https://arxiv.org/abs/2406.11827).
  """
  each = jnp.where(mask, token_logp - token_log_sum_sq, 0.0)
  length = jnp.sum(mask, axis=-1, dtype=jnp.float32)
  return jnp.sum(each, axis=-1) / jnp.maximum(length, 1.0)


@checked
def wpo_weight(
  chosen_log_weight: Float32[Array, "*pairs"],
  rejected_log_weight: Float32[Array, "*pairs"],
  *,
  max_weight: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """Weight of a pair by how likely the policy would have made it.

      w = min(max_weight, exp(chosen + rejected)), without gradient

  Any pair loss can be multiplied by it. Exponents above 80 count as 80, to
  stay finite in float32 without a maximum.

  Args:
    chosen_log_weight: `wpo_log_weight` of the preferred response.
    rejected_log_weight: the same for the other response.
    max_weight: largest weight; infinity for none.

  Returns: one weight per pair; 1 where both responses are as likely as drawn
    ones.

  Reference: Zhou et al. 2024 (https://arxiv.org/abs/2406.11827).
  The authors' code has the maximum of 1; TRL 1.16 has none.
  """
  exponent = jnp.minimum(chosen_log_weight + rejected_log_weight, 80.0)
  weight = jnp.minimum(jnp.exp(exponent), max_weight)
  return jax.lax.stop_gradient(weight)


@loss("pair")
def wpo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  chosen_log_weight: Float32[Array, "*pairs"],
  rejected_log_weight: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  max_weight: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """Weighted preference optimization loss of each pair.

      loss = -w log σ(beta (chosen - rejected))
      w = min(max_weight, exp(log_weights' sum)), without gradient

  Use: for pairs that other models wrote: those which the policy itself could
  have written count more, as if the data were on-policy.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    chosen_log_weight: `wpo_log_weight` of the preferred response, in nats a
      token.
    rejected_log_weight: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
      The default is TRL's; 0.01 in the authors' code.
    max_weight: largest weight; infinity for none.

  Returns: one loss per pair; w log 2 where policy and reference agree.

  Reference: Zhou et al. 2024, eq. 2 (https://arxiv.org/abs/2406.11827), with
  the maximum of 1 of the authors' code; TRL 1.16 (use_weighting) has none.

  >>> ratio, half = jnp.array([2.0]), jnp.array([-0.5])
  >>> f"{wpo(ratio, -ratio, half, half, beta=0.1)[0]:.4f}"
  '0.1887'
  """
  weight = wpo_weight(
    chosen_log_weight, rejected_log_weight, max_weight=max_weight
  )
  return weight * jax.nn.softplus(-beta * (chosen_logratio - rejected_logratio))


@loss("pair")
def tdpo1(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  chosen_kl: Float32[Array, "*pairs"],
  rejected_kl: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Token-level DPO loss of each pair, first form.

      loss = -log σ(beta (chosen - rejected - (rejected_kl - chosen_kl)))

  Use: to weigh in the whole next-token distributions, not only the ratio of
  the token that stands there. Its gradient drives the policy away from the
  reference on preferred responses; that of `tdpo2` does not.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    chosen_kl: KL(π_ref ‖ π) of the next token, summed over the preferred
      response's positions, in nats.
    rejected_kl: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Zeng et al. 2024 (https://arxiv.org/abs/2404.11999).

  >>> ratio, kl = jnp.array([2.0]), jnp.array([0.5])
  >>> f"{tdpo1(ratio, -ratio, kl, 2 * kl, beta=0.1)[0]:.4f}"
  '0.5334'
  """
  margin = chosen_logratio - rejected_logratio - (rejected_kl - chosen_kl)
  return jax.nn.softplus(-beta * margin)


@loss("pair")
def tdpo2(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  chosen_kl: Float32[Array, "*pairs"],
  rejected_kl: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  alpha: Scalar = 0.5,
) -> Float32[Array, "*pairs"]:
  """Token-level DPO loss of each pair, second form.

      loss = -log σ(beta (chosen - rejected - alpha excess))
      excess = rejected_kl - sg(chosen_kl)

  Use: where DPO drifts far from the reference for little gain. The preferred
  responses' divergence counts, but no gradient flows through it (sg): it is
  the baseline which that of the rejected responses is measured against.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    chosen_kl: KL(π_ref ‖ π) of the next token, summed over the preferred
      response's positions, in nats.
    rejected_kl: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    alpha: weight of the divergences.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Zeng et al. 2024 (https://arxiv.org/abs/2404.11999).

  >>> ratio, kl = jnp.array([2.0]), jnp.array([0.5])
  >>> f"{tdpo2(ratio, -ratio, kl, 2 * kl, beta=0.1)[0]:.4f}"
  '0.5231'
  """
  baseline = jax.lax.stop_gradient(chosen_kl)
  excess = alpha * (rejected_kl - baseline)
  return jax.nn.softplus(-beta * (chosen_logratio - rejected_logratio - excess))
