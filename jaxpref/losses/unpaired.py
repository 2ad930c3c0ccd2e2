"""Losses of single responses that are labelled desirable or not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, checked, sum_valid


@checked
def kto_kl(
  mismatched_logratio: Float32[Array, "*responses"],
  valid: Bool[Array, "*responses"],
) -> Float32[Array, ""]:
  """KTO's estimate of how far the policy is from the reference.

      kl = max(0, mean over the batch of log π(y'|x) - log π_ref(y'|x))

  Its responses y' belong to other prompts of the batch. TRL 1.16 gives each
  prompt the response before it, even where that answers the same prompt;
  training here passes over those. `kto` takes no gradient through it.

  Args:
    mismatched_logratio: log-ratio of another prompt's response, summed over
      its response tokens, in nats.
    valid: which entries count.

  Returns: one number of the batch, in nats; 0 if nothing is valid.

  Reference: Ethayarajh et al. 2024 (https://arxiv.org/abs/2402.01306).
  """
  return jnp.maximum(_mean(mismatched_logratio, valid), 0.0)


@loss("response", coupled=True)
def kto(
  logratio: Float32[Array, "*responses"],
  desirable: Bool[Array, "*responses"],
  kl: Float32[Array, ""],
  *,
  beta: Scalar = 0.1,
  desirable_weight: Scalar = 1.0,
  undesirable_weight: Scalar = 1.0,
) -> Float32[Array, "*responses"]:
  """Kahneman-Tversky optimization loss of each response.

      loss = desirable_weight σ(-beta (logratio - kl))     if desirable
             undesirable_weight σ(beta (logratio - kl))    otherwise

  Use: for thumbs up and down, where nothing says which answers to one prompt
  compare. Weigh the classes so that desirable_weight · n_desirable is 1 to 4/3
  of undesirable_weight · n_undesirable.

  `kl` is a constant to it, as in the paper: no gradient flows there. It is of
  the whole step's batch, however the step is accumulated.

  Args:
    logratio: log π(y|x) - log π_ref(y|x), summed over the response tokens, in
      nats.
    desirable: whether people liked the response.
    kl: `kto_kl` of the batch, in nats.
    beta: strength of the pull towards the reference; larger stays closer.
    desirable_weight: λ_D, weight of the responses people liked.
    undesirable_weight: λ_U, weight of the others.

  Returns: one loss per response; half its weight where policy and reference
    agree.

  Reference: Ethayarajh et al. 2024 (https://arxiv.org/abs/2402.01306).

  >>> good, kl = jnp.array([True]), jnp.float32(0.2)
  >>> f"{kto(jnp.array([0.3]), good, kl, beta=0.1)[0]:.4f}"
  '0.4975'
  """
  gain = beta * (logratio - jax.lax.stop_gradient(kl))
  weight = jnp.where(desirable, desirable_weight, undesirable_weight)
  return weight * jax.nn.sigmoid(jnp.where(desirable, -gain, gain))


@loss("response")
def apo_zero_unpaired(
  logratio: Float32[Array, "*responses"],
  desirable: Bool[Array, "*responses"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*responses"]:
  """Anchored preference optimization (zero) loss of each response.

      loss = σ(-beta logratio) if desirable, σ(beta logratio) otherwise

  Use: like KTO, without its estimate of the KL, where the desirable answers
  are better than what the model would say.

  Args:
    logratio: log π(y|x) - log π_ref(y|x), summed over the response tokens, in
      nats.
    desirable: whether people liked the response.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per response; 1/2 where policy and reference agree.

  Reference: D'Oosterlinck et al. 2024, eq. 7, whose two terms are those of a
  pair's responses (https://arxiv.org/abs/2408.06266).

  >>> f"{apo_zero_unpaired(jnp.array([2.0]), jnp.array([True]))[0]:.4f}"
  '0.4502'
  """
  gain = beta * logratio
  return jax.nn.sigmoid(jnp.where(desirable, -gain, gain))


@loss("response", coupled=True)
def bco(
  logratio: Float32[Array, "*responses"],
  desirable: Bool[Array, "*responses"],
  valid: Bool[Array, "*responses"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*responses"]:
  """Binary classifier optimization loss of each response.

      loss = -log σ(beta logratio - δ)     if desirable
             -log σ(δ - beta logratio)     otherwise
      δ = mean of beta logratio over the batch, without gradient

  Use: for thumbs up and down like KTO, as a classifier of the two kinds. Where
  their prompts differ, weigh the undesirable responses by the ratio of the
  prompts' densities: weights scale a loss wherever it is summed.

  Args:
    logratio: log π(y|x) - log π_ref(y|x), summed over the response tokens, in
      nats.
    desirable: whether people liked the response.
    valid: which entries count; the others are 0.
    beta: strength of the pull towards the reference; larger stays closer.
      The default is TRL's; 0.01 in the paper.

  Returns: one loss per response; log 2 where policy and reference agree.

  Reference: Jung et al. 2024 (https://arxiv.org/abs/2404.04656).
  δ is the mean over the responses of this batch; TRL 0.19 keeps a running
  mean of all batches, and TRL 1.16 has neither δ nor an unpaired form.

  >>> pair = jnp.array([0.3, -2.4]), jnp.array([True, False])
  >>> f"{bco(*pair, jnp.array([True, True]))[0]:.4f}"
  '0.6279'
  """
  reward = beta * jnp.where(valid, logratio, 0.0)
  shift = jax.lax.stop_gradient(_mean(reward, valid))
  gain = reward - shift
  losses = jax.nn.softplus(jnp.where(desirable, -gain, gain))
  return jnp.where(valid, losses, 0.0)


def _mean(x: Array, valid: Array) -> Array:
  term = sum_valid(x, valid)
  return term.total / jnp.maximum(term.count, 1.0)
