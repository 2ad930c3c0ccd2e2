"""Losses of preference pairs that need no reference model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range


@loss("pair")
def simpo(
  chosen_mean_logp: Float32[Array, "*pairs"],
  rejected_mean_logp: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 2.0,
  gamma: Scalar = 0.5,
  label_smoothing: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Simple preference optimization loss of each pair.

      loss = -(1 - s) log σ(m) - s log σ(-m)
      m = beta (chosen - rejected) - gamma

  Use: where memory has no room for a reference, or where DPO's answers grow
  long: the average over tokens rewards no length. Keep the learning rate low,
  since nothing else holds the policy back.

  Args:
    chosen_mean_logp: log π(y|x) of the preferred response, averaged over its
      response tokens, in nats a token.
    rejected_mean_logp: the same for the other response.
    beta: scale of the margin; 2 to 10 in the paper.
    gamma: how much larger than 0 the scaled margin shall be; a tenth to eight
      tenths of beta.
    label_smoothing: s, the probability that a pair is labelled backwards; not
      in the paper.

  Returns: one loss per pair; log(1 + exp(gamma)) where both responses are as
    likely a token.

  Reference: Meng et al. 2024, eq. 6 (https://arxiv.org/abs/2405.14734).
  TRL 1.16 has it as loss_type="simpo" of its CPOTrainer, with beta 0.1, and
  adds the chosen responses' NLL unless cpo_alpha is 0; the paper has no such
  term.

  >>> f"{simpo(jnp.array([-0.5]), jnp.array([-1.0]), beta=2.0)[0]:.4f}"
  '0.4741'
  """
  check_range("label_smoothing", label_smoothing, 0.0, 0.5)
  margin = beta * (chosen_mean_logp - rejected_mean_logp) - gamma
  return _smoothed(margin, label_smoothing)


@loss("pair", nll_weight=1.0)
def cpo(
  chosen_logp: Float32[Array, "*pairs"],
  rejected_logp: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  label_smoothing: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Contrastive preference optimization loss of each pair.

      loss = -(1 - s) log σ(m) - s log σ(-m),   m = beta (chosen - rejected)

  Use: to keep imitating good answers while learning what to avoid in bad ones,
  as for translations, in one model's memory.

  The paper adds the negative log-likelihood of the chosen responses, averaged
  over the tokens of the batch. It is a term of its own: training adds it with
  the weight `config.loss.nll_weight`, 1 unless set.

  Args:
    chosen_logp: log π(y|x) of the preferred response, summed over its response
      tokens, in nats.
    rejected_logp: the same for the other response.
    beta: scale of the margin.
    label_smoothing: s, the probability that a pair is labelled backwards; not
      in the paper.

  Returns: one loss per pair; log 2 where both responses are as likely.

  Reference: Xu et al. 2024 (https://arxiv.org/abs/2401.08417).

  >>> f"{cpo(jnp.array([-2.0]), jnp.array([-5.0]), beta=0.1)[0]:.4f}"
  '0.5544'
  """
  check_range("label_smoothing", label_smoothing, 0.0, 0.5)
  return _smoothed(beta * (chosen_logp - rejected_logp), label_smoothing)


@loss("pair", nll_weight=1.0)
def orpo(
  chosen_mean_logp: Float32[Array, "*pairs"],
  rejected_mean_logp: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Odds ratio preference optimization loss of each pair.

      loss = -beta log σ(log odds(chosen) - log odds(rejected))
      odds = p / (1 - p),   p = exp(mean log-probability a token)

  Use: to do supervised fine-tuning and preferences in one go, from a base
  model: the likelihood term is most of the loss.

  The paper adds the negative log-likelihood of the chosen responses, averaged
  over the tokens of the batch. It is a term of its own: training adds it with
  the weight `config.loss.nll_weight`, 1 unless set. It covers response tokens
  only; TRL 1.16 counts the prompt's tokens too.

  Odds have no bound where p nears 1: mean log-probabilities above -1e-6, less
  than float32 tells apart, count as that and get no gradient.

  Args:
    chosen_mean_logp: log π(y|x) of the preferred response, averaged over its
      response tokens, in nats a token; below 0.
    rejected_mean_logp: the same for the other response.
    beta: λ of the paper, the weight of this term against the likelihood.

  Returns: one loss per pair; beta log 2 where both responses are as likely a
    token.

  Reference: Hong et al. 2024, eq. 6 and 7 (https://arxiv.org/abs/2403.07691).

  >>> f"{orpo(jnp.array([-0.5]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.0320'
  """
  log_odds = _log_odds(chosen_mean_logp) - _log_odds(rejected_mean_logp)
  return -beta * jax.nn.log_sigmoid(log_odds)


@loss("pair")
def slic_hf(
  chosen_logp: Float32[Array, "*pairs"],
  rejected_logp: Float32[Array, "*pairs"],
  *,
  delta: Scalar = 1.0,
  regularization: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Sequence likelihood calibration loss of each pair.

      loss = max(0, delta - chosen + rejected) - regularization · chosen

  Use: as a margin loss that lets go of a pair once it is told apart, with a
  likelihood term that keeps the language. `hinge` is the form that measures
  both responses against a reference.

  Args:
    chosen_logp: log π(y|x) of the preferred response, summed over its response
      tokens, in nats.
    rejected_logp: the same for the other response.
    delta: the margin asked for, in nats.
    regularization: λ, the weight of the preferred response's negative
      log-likelihood, summed over its tokens as the rest is.

  Returns: one loss per pair; delta plus the regularisation where both
    responses are as likely.

  Reference: Zhao et al. 2023 (https://arxiv.org/abs/2305.10425), with the
  defaults of https://github.com/ContextualAI/HALOs. The paper's
  regularisation may have a target of its own; here it is the preferred
  response. TRL 1.16 calls `hinge` a SLiC loss: it uses a reference and has no
  likelihood term.

  >>> f"{slic_hf(jnp.array([-3.0]), jnp.array([-2.4]))[0]:.4f}"
  '1.9000'
  """
  margin = jax.nn.relu(delta - chosen_logp + rejected_logp)
  return margin - regularization * chosen_logp


def _smoothed(margin: Array, label_smoothing: Scalar) -> Array:
  kept, swapped = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
  return -(1.0 - label_smoothing) * kept - label_smoothing * swapped


def _log_odds(mean_logp: Array) -> Array:
  mean_logp = jnp.minimum(mean_logp, -1e-6)
  return mean_logp - jax.nn.log1mexp(-mean_logp)
