"""Losses of the margin between two log-ratios to a reference model."""

import jax
import jax.numpy as jnp
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
def dpo_mean(
  chosen_mean_logratio: Float32[Array, "*pairs"],
  rejected_mean_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 5.0,
) -> Float32[Array, "*pairs"]:
  """DPO with log-ratios averaged over tokens.

      loss = -log σ(beta (chosen - rejected))

  Use: where DPO lengthens the answers. Means are far smaller than sums, so
  beta is far larger than in `dpo`.

  Args:
    chosen_mean_logratio: log π(y|x) - log π_ref(y|x) of the preferred
      response, averaged over its response tokens, in nats a token.
    rejected_mean_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Lambert et al. 2024 (Tülu 3, https://arxiv.org/abs/2411.15124),
  with their beta. It is TRL's `sigmoid_norm`.

  >>> f"{dpo_mean(jnp.array([0.2]), jnp.array([-0.1]), beta=5.0)[0]:.4f}"
  '0.2014'
  """
  margin = chosen_mean_logratio - rejected_mean_logratio
  return -jax.nn.log_sigmoid(beta * margin)


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
    beta: τ of the paper, the strength of the pull towards the reference;
      the default is TRL's.

  Returns: one loss per pair; 1 / (4 beta²) where policy and reference agree.

  Reference: Azar et al. 2023, eq. 17 (https://arxiv.org/abs/2310.12036). The
  equation sums over tokens; its authors advise the average, as TRL does.

  >>> f"{ipo(jnp.array([2.0]), jnp.array([-1.0]), beta=0.5)[0]:.4f}"
  '4.0000'
  """
  margin = chosen_mean_logratio - rejected_mean_logratio
  return (margin - 1.0 / (2.0 * beta)) ** 2


@loss("pair")
def ipo_sum(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Identity preference optimization with log-ratios summed over tokens.

      loss = (chosen - rejected - 1 / (2 beta))²

  Use: to follow the equation to the letter, or code that does (OpenRLHF);
  otherwise `ipo`. Long responses pull harder here, so that a beta for one of
  the two means nothing to the other.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: τ of the paper, the strength of the pull towards the reference;
      the default is OpenRLHF's.

  Returns: one loss per pair; 1 / (4 beta²) where policy and reference agree.

  Reference: Azar et al. 2023, eq. 17 (https://arxiv.org/abs/2310.12036). TRL
  averages instead.

  >>> f"{ipo_sum(jnp.array([2.0]), jnp.array([-1.0]), beta=0.5)[0]:.4f}"
  '4.0000'
  """
  return (chosen_logratio - rejected_logratio - 1.0 / (2.0 * beta)) ** 2


@loss("pair")
def robust_dpo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  label_smoothing: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """DPO made unbiased for labels that are flipped at a known rate.

      loss = (-(1 - s) log σ(m) + s log σ(-m)) / (1 - 2s),
      m = beta (chosen - rejected)

  Use: where a known fraction of the labels is wrong. Its expectation over
  flipped labels is the loss of the clean ones, whereas `dpo` with
  label_smoothing makes the policy less sure.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
      The default is TRL's; 0.01 in the paper.
    label_smoothing: s, the probability that a pair is labelled backwards.

  Returns: one loss per pair; log 2 where policy and reference agree. It has
  no lower bound: a large margin makes it negative.

  Raises ValueError unless 0 <= label_smoothing < 0.5.

  Reference: Chowdhury et al. 2024 (https://arxiv.org/abs/2403.00409).

  >>> f"{robust_dpo(jnp.array([2.0]), jnp.array([-1.0]))[0]:.4f}"
  '0.5169'
  """
  check_range("label_smoothing", label_smoothing, 0.0, 0.5)
  margin = beta * (chosen_logratio - rejected_logratio)
  kept, swapped = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
  unscaled = label_smoothing * swapped - (1.0 - label_smoothing) * kept
  return unscaled / (1.0 - 2.0 * label_smoothing)


@loss("pair")
def hinge(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Hinge on the margin of the log-ratios of each pair.

      loss = max(0, 1 - beta (chosen - rejected))

  Use: where pairs that are told apart well enough should stop pulling.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: inverse of the margin asked for, in 1 / nats; larger stays closer.
      The default is TRL's.

  Returns: one loss per pair; 1 where policy and reference agree, and 0 with
  no gradient from a margin of 1 / beta on.

  Reference: Liu et al. 2023 (RSO, its "hinge-norm", there with γ = 0.05;
  https://arxiv.org/abs/2309.06657), after Zhao et al. 2023 (SLiC-HF,
  https://arxiv.org/abs/2305.10425), who use no reference model. TRL's `hinge`
  is this one.

  >>> f"{hinge(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.7000'
  """
  return jax.nn.relu(1.0 - beta * (chosen_logratio - rejected_logratio))


@loss("pair")
def exo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  label_smoothing: Scalar = 1e-3,
) -> Float32[Array, "*pairs"]:
  """Efficient exact optimization: reverse KL from the pair's smoothed label.

      loss = σ(m) (log σ(m) - log(1 - s)) + σ(-m) (log σ(-m) - log s),
      m = beta (chosen - rejected)

  Use: where the policy should settle on answers that are surely good rather
  than cover all that were preferred.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    label_smoothing: s, the probability that a pair is labelled backwards.

  Returns: one loss per pair, which is a KL divergence; 0 where σ(m) = 1 - s,
  and -log(2 √(s (1 - s))) where policy and reference agree.

  Raises ValueError unless 0 < label_smoothing < 0.5; 0 is no limit of it,
  since log 0 is infinite.

  Reference: Ji et al. 2024, eq. 16 (https://arxiv.org/abs/2402.00856).

  >>> f"{exo(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '2.2582'
  """
  check_range("label_smoothing", label_smoothing, _SMALLEST, 0.5)
  margin = beta * (chosen_logratio - rejected_logratio)
  kept = jax.nn.log_sigmoid(margin) - jnp.log1p(-label_smoothing)
  swapped = jax.nn.log_sigmoid(-margin) - jnp.log(label_smoothing)
  return jax.nn.sigmoid(margin) * kept + jax.nn.sigmoid(-margin) * swapped


@loss("pair")
def discopop(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  tau: Scalar = 0.05,
) -> Float32[Array, "*pairs"]:
  """Logistic and exponential loss, mixed by the margin itself.

      loss = -(1 - w) log σ(m) + w exp(-m),   w = σ(m / tau),
      m = beta (chosen - rejected)

  Use: as a stronger alternative to DPO; language models found it by searching
  for losses. It is not convex: it rises around a margin of 0, where pairs that
  are hard to tell apart may come to rest.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
      The default is TRL's; 0.05 in the paper.
    tau: width of the mixture's step, as a margin.

  Returns: one loss per pair; (1 + log 2) / 2 where policy and reference agree.

  Raises ValueError unless tau > 0.

  Reference: Lu et al. 2024, eq. 5 (https://arxiv.org/abs/2406.08414). Exact
  at any margin while tau <= 1; TRL's exp(-m) overflows where m < -88. For
  larger tau, w exp(-m) stops at e^80, with no gradient.

  >>> f"{discopop(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.7404'
  """
  check_range("tau", tau, _SMALLEST, float("inf"))
  margin = beta * (chosen_logratio - rejected_logratio)
  logistic = -jax.nn.log_sigmoid(margin) * jax.nn.sigmoid(-margin / tau)
  # One exponent, since w vanishes faster than exp(-m) grows.
  exponent = jax.nn.log_sigmoid(margin / tau) - margin
  return logistic + jnp.exp(jnp.minimum(exponent, 80.0))


_SMALLEST = float(jnp.finfo(jnp.float32).tiny)  # that is above 0
