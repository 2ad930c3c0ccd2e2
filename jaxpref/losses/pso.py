"""Pairwise sample optimization of few-step, distilled image generators."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range


@loss("step")
def pso(
  chosen_step_logratio: Float32[Array, "*pairs steps"],
  rejected_step_logratio: Float32[Array, "*pairs steps"],
  *,
  beta: Scalar = 50.0,
  clip: Scalar = 0.1,
) -> Float32[Array, "*pairs steps"]:
  """Pairwise sample optimization loss of each sampling step of each pair.

      loss    = -log σ(beta (log ρ(chosen) - log ρ(rejected)))
      log ρ(d) = log of exp(d) clipped to 1 - clip .. 1 + clip

  Use: to align a few-step generator (SDXL-Turbo, DMD2, LCM) with a reward on
  its own samples, without distilling it again.

  The clip is a trust region around the reference: a step beyond it has no
  gradient, on whichever side. Leave out pairs of equal reward, and the last
  step where the sampler adds no noise. The paper's equation puts the sum over
  the steps inside one sigmoid, unclipped: that is `dpo` of the sums. Offline,
  where the chosen image is data that gets noised, twice its
  `denoising_logratio` takes the place of the chosen side.

  Args:
    chosen_step_logratio: `denoising_step_logratio` of each step of the
      preferred trajectory, in nats an element.
    rejected_step_logratio: the same for the other trajectory.
    beta: strength of the pull towards the reference.
    clip: how far a ratio may leave 1, below 1.

  Returns: one loss per step of each pair; log 2 where policy and reference
  agree, and within 4.4e-5 and 10.04 at the default hyper-parameters.

  Reference: Miao et al. 2024 (https://arxiv.org/abs/2410.03190); the clip, the
  sigmoid of each step and the defaults are those of the authors' online code.

  >>> d = jnp.array([[0.035]]), jnp.array([[-0.01]])
  >>> f"{pso(*d)[0, 0]:.4f}"
  '0.1002'
  """
  check_range("clip", clip, 0.0, 1.0)
  # Clipping the logarithm is the same, and does not overflow.
  low, high = jnp.log1p(-clip), jnp.log1p(clip)
  chosen = jnp.clip(chosen_step_logratio, low, high)
  rejected = jnp.clip(rejected_step_logratio, low, high)
  return -jax.nn.log_sigmoid(beta * (chosen - rejected))


@loss("pair")
def pso_dreambooth(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  rejected_error: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 10.0,
  delta: Scalar = 0.1,
  prior_weight: Scalar = 0.5,
) -> Float32[Array, "*pairs"]:
  """Offline pairwise sample optimization loss for personalisation.

      loss = -log σ(beta (chosen - δ rejected)) + prior_weight rejected_error

  Use: to teach a distilled generator a subject from a few photographs (chosen)
  against its own earlier samples of the same class (rejected), which it should
  not forget how to draw.

  Args:
    chosen_logratio: `denoising_logratio` of a photograph of the subject.
    rejected_logratio: the same for a sample of the initial model.
    rejected_error: `denoising_error` of that sample.
    beta: strength of the pull towards the reference; twice the authors', who do
      not halve the errors.
    delta: δ, how much of the rejected image counts in the margin.
    prior_weight: weight of denoising the rejected image as well.

  Returns: one loss per pair; log 2 where policy and reference agree and the
  rejected image is denoised without error.

  Reference: Miao et al. 2024 (https://arxiv.org/abs/2410.03190), the loss
  "pso" of the authors' code for personalisation, which ships no setting of it;
  the defaults are those of its sibling `pso_dreambooth_hinge`.

  >>> x = jnp.array([0.1])
  >>> f"{pso_dreambooth(x, -x, 2 * x, beta=1)[0]:.4f}"
  '0.7397'
  """
  margin = beta * (chosen_logratio - delta * rejected_logratio)
  return -jax.nn.log_sigmoid(margin) + prior_weight * rejected_error


@loss("pair")
def pso_dreambooth_hinge(
  chosen_error: Float32[Array, "*pairs"],
  rejected_error: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 5.0,
  delta: Scalar = 0.1,
  prior_weight: Scalar = 0.5,
) -> Float32[Array, "*pairs"]:
  """Personalisation loss by pairwise sample optimization, reference-free.

      loss = max(0, 1 + beta (chosen - δ rejected)) + prior_weight rejected

  Use: as `pso_dreambooth`, without room for a reference. At the defaults, which
  all scripts of the authors use, the rejected image cancels out and what is
  left is denoising the chosen one: lower prior_weight to learn from both.

  Args:
    chosen_error: `denoising_error` of a photograph of the subject.
    rejected_error: the same for a sample of the initial model.
    beta: scale of the margin.
    delta: δ, how much of the rejected image counts in the margin.
    prior_weight: weight of denoising the rejected image as well.

  Returns: one loss per pair; 1 where both are denoised without error.

  Reference: Miao et al. 2024 (https://arxiv.org/abs/2410.03190), the loss
  "pso_db" of the authors' code for personalisation.

  >>> x = jnp.array([0.1]), jnp.array([0.12])
  >>> f"{pso_dreambooth_hinge(*x)[0]:.4f}"
  '1.5000'
  """
  margin = beta * (delta * rejected_error - chosen_error)
  return jax.nn.relu(1.0 - margin) + prior_weight * rejected_error
