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
  the steps inside one sigmoid, unclipped: that is `dpo` of the sums. Of images
  that are data see `pso_offline`.

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


@loss("step")
def pso_offline(
  chosen_noised_logratio: Float32[Array, "*pairs steps"],
  rejected_noised_logratio: Float32[Array, "*pairs steps"],
  *,
  beta: Scalar = 50.0,
  clip: Scalar = 0.1,
) -> Float32[Array, "*pairs steps"]:
  """Pairwise sample optimization loss of each step of each pair of data.

      loss     = -log σ(beta (log ρ(chosen) - log ρ(rejected)))
      log ρ(d) = log of exp(d) clipped to 1 - clip .. 1 + clip

  Use: as `pso`, where people have compared images that are there: to align a
  few-step generator with a data set of pairs.

  An image is noised to the timesteps that the sampler visits, along a way that
  the sampler would take if its model knew the image; each of its steps has a
  density under policy and reference. Both images of a pair are data, and so
  both have the ratio that sampled ones have in `pso`; the paper's equation,
  whose two sides differ, is `pso_offline_sum`.

  Args:
    chosen_noised_logratio: `denoising_step_logratio` of each step of such a way
      to the preferred image, in nats an element.
    rejected_noised_logratio: the same for the other image.
    beta: strength of the pull towards the reference.
    clip: how far a ratio may leave 1, below 1.

  Returns: one loss per step of each pair; log 2 where policy and reference
  agree.

  Reference: Miao et al. 2024 (https://arxiv.org/abs/2410.03190). No code of
  theirs trains on pairs of a data set: the clip, the sigmoid of each step and
  the defaults are those of their online code.

  >>> d = jnp.array([[0.035]]), jnp.array([[-0.01]])
  >>> f"{pso_offline(*d)[0, 0]:.4f}"
  '0.1002'
  """
  given = chosen_noised_logratio, rejected_noised_logratio
  return pso(*given, beta=beta, clip=clip)


@loss("pair")
def pso_offline_sum(
  chosen_noised_gain: Float32[Array, "*pairs steps"],
  rejected_noised_logratio: Float32[Array, "*pairs steps"],
  *,
  beta: Scalar = 10.0,
) -> Float32[Array, "*pairs"]:
  """Offline pairwise sample optimization as the paper's equation has it.

      loss = -log σ(beta sum over steps of (chosen - rejected))

  Use: as `pso_offline`, for the objective of the paper: one sigmoid for all
  steps of a pair, without a clip, and the chosen image by its errors. The
  paper's rejected side is a way that the model before training sampled; of a
  pair of data there is none, and the sampler's way to the image stands for it.

  The two sides are not alike: equal gains of both images count on the rejected
  side by the step's (to_noise - to_latent sigma / alpha)² / (2 std²), which is
  5.9, 2.7 and 2.2 at the steps of SDXL-Turbo.

  Args:
    chosen_noised_gain: the reference's `denoising_error` less the policy's, of
      the preferred image at each timestep of the sampler.
    rejected_noised_logratio: `denoising_step_logratio` of each step of a way
      to the other image, in nats an element.
    beta: strength of the pull towards the reference. The paper's squares are
      sums, and these are means: its beta is this one over the elements.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Miao et al. 2024 (https://arxiv.org/abs/2410.03190), as a later
  paper's appendix has it (FestDPO), which also chose the default, of 1 to 100,
  for images of one step.

  >>> d = jnp.array([[0.03, 0.01]]), jnp.array([[-0.01, 0.0]])
  >>> f"{pso_offline_sum(*d)[0]:.4f}"
  '0.4741'
  """
  margin = jnp.sum(chosen_noised_gain - rejected_noised_logratio, axis=-1)
  return -jax.nn.log_sigmoid(beta * margin)


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
