"""Losses of preference pairs measured against a reference model."""

import jax
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range


@loss("pair")
def dpo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  label_smoothing: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Direct preference optimization loss of each pair.

      loss = -(1 - s) log σ(m) - s log σ(-m),   m = beta (chosen - rejected)

  Use: the place to start. With label_smoothing above 0 it is conservative DPO,
  for labels of which some are wrong.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    label_smoothing: s, the probability that a pair is labelled backwards.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Rafailov et al. 2023, eq. 7 (https://arxiv.org/abs/2305.18290);
  smoothing: Mitchell 2023, eq. 3 (https://ericmitchell.ai/cdpo.pdf).
  Sums over tokens, as the paper does; nothing is normalised by length.
  TRL 1.16 ignores label_smoothing here.

  >>> f"{dpo(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.5544'
  """
  check_range("label_smoothing", label_smoothing, 0.0, 0.5)
  margin = beta * (chosen_logratio - rejected_logratio)
  kept, swapped = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
  return -(1.0 - label_smoothing) * kept - label_smoothing * swapped


@loss("pair")
def ipo(
  chosen_mean_logratio: Float32[Array, "*pairs"],
  rejected_mean_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Identity preference optimization loss of each pair.

      loss = (chosen - rejected - 1 / (2 beta))²

  Use: where DPO drives the margins of few, sure pairs without end: the margin
  has a target here.

  Args:
    chosen_mean_logratio: log π(y|x) - log π_ref(y|x) of the preferred
      response, averaged over its response tokens, in nats a token.
    rejected_mean_logratio: the same for the other response.
    beta: τ of the paper, the strength of the pull towards the reference.

  Returns: one loss per pair; 1 / (4 beta²) where policy and reference agree.

  Reference: Azar et al. 2023, eq. 17 (https://arxiv.org/abs/2310.12036). The
  equation sums over tokens; its authors advise the average, as TRL does.

  >>> f"{ipo(jnp.array([2.0]), jnp.array([-1.0]), beta=0.5)[0]:.4f}"
  '4.0000'
  """
  margin = chosen_mean_logratio - rejected_mean_logratio
  return (margin - 1.0 / (2.0 * beta)) ** 2
