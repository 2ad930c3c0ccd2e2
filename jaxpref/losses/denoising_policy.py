"""Policy gradients over the steps of a denoiser, each a Gaussian action.

A trajectory is the chain of noisy samples that ends in one image (or one plan).
Its reward comes at the end and counts for all of its steps. `old_step_logp` and
`advantage` are constants: the caller stops their gradients.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.ratios import clip_surrogate
from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, checked


@checked
def gaussian_logp(
  x: Float32[Array, "*steps dims"],
  mean: Float32[Array, "*steps dims"],
  std: Float32[Array, "*steps"],
) -> Float32[Array, "*steps"]:
  """Log-density of what a denoising step sampled, summed over dimensions.

      Σ -(x - mean)² / (2 std²) - log std - log √(2π)

  Use: for actions of few dimensions, whose ratio is that of probabilities.

  A step without noise (std 0; the last one of many samplers) has no density:
  it gives 0 and no gradient, hence a ratio of 1.

  Args:
    x: the less noisy sample that was drawn, a constant; images as one axis.
    mean: what the denoiser makes of the noisier one.
    std: of the step's noise.

  Returns: one log-density per step, in nats.

  Reference: Black et al. 2023, section 4 (https://arxiv.org/abs/2305.13301);
  summed as in Huang et al. 2024 (https://arxiv.org/abs/2410.05582).

  >>> x, s = jnp.array([[0.1, -0.2]]), jnp.array([0.5])
  >>> f"{gaussian_logp(x, 0.0 * x, s)[0]:.4f}"
  '-0.5516'
  """
  noisy = std > 0.0
  std = jnp.where(noisy, std, 1.0)
  error = jnp.where(noisy[..., None], x - mean, 0.0) / std[..., None]
  constant = jnp.log(std) + 0.5 * math.log(2.0 * math.pi)
  logp = -0.5 * jnp.sum(error**2, axis=-1) - x.shape[-1] * constant
  return jnp.where(noisy, logp, 0.0)


@checked
def gaussian_mean_logp(
  x: Float32[Array, "*steps dims"],
  mean: Float32[Array, "*steps dims"],
  std: Float32[Array, "*steps"],
) -> Float32[Array, "*steps"]:
  """Log-density of what a denoising step sampled, averaged over dimensions.

      gaussian_logp(x, mean, std) / dimensions

  Use: for images, whose ratios would leave any clipping at once if thousands of
  pixels were summed.

  Args: as in `gaussian_logp`.

  Returns: one log-density per step, in nats a dimension.

  Reference: the code of Black et al. 2023 (https://arxiv.org/abs/2305.13301),
  which averages; its paper has the density of the whole image.

  >>> x, s = jnp.array([[0.1, -0.2]]), jnp.array([0.5])
  >>> f"{gaussian_mean_logp(x, 0.0 * x, s)[0]:.4f}"
  '-0.2758'
  """
  return gaussian_logp(x, mean, std) / x.shape[-1]


@loss("step")
def ddpo(
  step_logp: Float32[Array, "*trajectories steps"],
  old_step_logp: Float32[Array, "*trajectories steps"],
  advantage: Float32[Array, "*trajectories"],
  mask: Bool[Array, "*trajectories steps"],
  *,
  epsilon: Scalar = 1e-4,
  advantage_clip: Scalar = 5.0,
) -> Float32[Array, "*trajectories steps"]:
  """Clipped policy loss of each denoising step (DDPO).

      loss = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A),   ρ = π / π_old of the step
      A    = clip(advantage, -c, c)

  Use: to raise any reward of finished images, differentiable or not, by the
  steps that led to them.

  The mean over steps is the authors' code's. ρ is exact up to e^20 and its
  tangent above.

  Args:
    step_logp: log-density of each step (`gaussian_mean_logp`), in nats.
    old_step_logp: the same when the image was sampled.
    advantage: of each trajectory: its reward, normalised by prompt or batch.
    mask: which steps there are, and have noise.
    epsilon: how far the ratio may leave 1; small, as densities are averaged.
    advantage_clip: c.

  Returns: one loss per step, 0 outside of the mask; -A where policies agree.

  Reference: Black et al. 2023, section 4.3 (https://arxiv.org/abs/2305.13301);
  ε and c of its code.

  >>> old, a = jnp.array([[-0.7]]), jnp.array([0.5])
  >>> f"{ddpo(old + 0.1, old, -a, old < 0)[0, 0]:.4f}"
  '0.5526'
  """
  clipped = jnp.clip(advantage, -advantage_clip, advantage_clip)
  return _clipped_steps(step_logp, old_step_logp, clipped, mask, epsilon)


@loss("step")
def gen_drive(
  step_logp: Float32[Array, "*trajectories steps"],
  old_step_logp: Float32[Array, "*trajectories steps"],
  advantage: Float32[Array, "*trajectories"],
  anchor_error: Float32[Array, "*trajectories steps"],
  mask: Bool[Array, "*trajectories steps"],
  *,
  epsilon: Scalar = 0.01,
  anchor_weight: Scalar = 10.0,
) -> Float32[Array, "*trajectories steps"]:
  """Clipped policy loss of each denoising step, anchored to real data.

      loss = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) + c anchor_error

  Use: where there is real data for each start: predicting it well takes the
  place of a reference model.

  The paper sums over steps and takes the mean over trajectories: the mean over
  steps times their number. It sums down to the last step, which has no noise;
  leave that out by the mask.

  Args:
    step_logp: log-density of the actions that are rewarded (`gaussian_logp`),
      in nats.
    old_step_logp: the same when the trajectory was sampled.
    advantage: of each trajectory (`group_advantage`).
    anchor_error: how far each step's prediction is from real data
      (`smooth_l1`), with its gradient.
    mask: which steps there are, and have noise.
    epsilon: how far the ratio may leave 1.
    anchor_weight: c.

  Returns: one loss per step, 0 outside of the mask; -A + c error where policies
  agree.

  Reference: Huang et al. 2024 (https://arxiv.org/abs/2410.05582).

  >>> old, a = jnp.array([[-0.7]]), jnp.array([0.5])
  >>> f"{gen_drive(old + 0.1, old, -a, 0.0 * old, old < 0)[0, 0]:.4f}"
  '0.5526'
  """
  policy = _clipped_steps(step_logp, old_step_logp, advantage, mask, epsilon)
  return policy + anchor_weight * jnp.where(mask, anchor_error, 0.0)


@checked
def smooth_l1(
  prediction: Float32[Array, "*steps dims"],
  target: Float32[Array, "*steps dims"],
) -> Float32[Array, "*steps"]:
  """Squared error up to a distance of 1, absolute from there; averaged.

      mean of e² / 2 where |e| < 1, else |e| - 1/2

  Use: as a regression that outliers do not dominate.

  Args:
    prediction: of each dimension.
    target: what it should be.

  Returns: one error per step; 0 where they agree.

  Reference: Girshick 2015, eq. 3 (https://arxiv.org/abs/1504.08083).

  >>> f"{smooth_l1(jnp.array([[0.5, 2.0]]), jnp.zeros((1, 2)))[0]:.4f}"
  '0.8125'
  """
  error = jnp.abs(prediction - target)
  near = jnp.minimum(error, 1.0)
  return jnp.mean(0.5 * near**2 + (error - near), axis=-1)


def _clipped_steps(
  step_logp: Float32[Array, "*trajectories steps"],
  old_step_logp: Float32[Array, "*trajectories steps"],
  advantage: Float32[Array, "*trajectories"],
  mask: Bool[Array, "*trajectories steps"],
  epsilon: Scalar,
) -> Float32[Array, "*trajectories steps"]:
  logratio = jnp.where(mask, step_logp - old_step_logp, 0.0)
  everywhere = jnp.where(mask, advantage[..., None], 0.0)
  per_step = clip_surrogate(
    logratio, everywhere, epsilon_low=epsilon, epsilon_high=epsilon
  )
  return jnp.where(mask, per_step, 0.0)
