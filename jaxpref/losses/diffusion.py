"""From the errors of a denoiser to values that every loss takes.

A value is minus half the mean squared error of a prediction. It stands where a
language model has a log-probability: `chosen_logp` is the value of the chosen
image, `chosen_logratio` its difference to the reference's. So `dpo` of them is
Diffusion-DPO, and every pairwise and listwise loss is one for images as it is.

A video's value is the mean of the values of its frames.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range, checked

_LATENT = (-3, -2, -1)


@checked
def denoising_error(
  prediction: Float32[Array, "*latents y x c"],
  target: Float32[Array, "*latents y x c"],
) -> Float32[Array, "*latents"]:
  """Mean squared error of the prediction of each latent.

      error = mean over y, x, c of (prediction - target)²

  Use: as every `error` of a loss, as in `mapo` and `flow_rwr`; and as the loss
  of plain fine-tuning.

  Args:
    prediction: what the model predicts: noise, velocity or the clean latent.
    target: what it should have predicted.

  Returns: one error per latent; 0 where the prediction is right.

  Reference: Ho et al. 2020, eq. 14 (https://arxiv.org/abs/2006.11239).

  >>> f"{denoising_error(jnp.ones((1, 2, 2, 4)), jnp.zeros((1, 2, 2, 4)))[0]}"
  '1.0'
  """
  return jnp.mean((prediction - target) ** 2, axis=_LATENT)


@loss("sequence")
def denoising(
  error: Float32[Array, "*latents"],
) -> Float32[Array, "*latents"]:
  """Plain fine-tuning: the denoising error of each image is its loss.

      loss = error

  Use: to train or fine-tune a diffusion model on images alone; the better
  images of comparisons, where there are any.

  Args:
    error: `denoising_error` of the image.

  Returns: one loss per image.

  Reference: Ho et al. 2020, eq. 14 (https://arxiv.org/abs/2006.11239).

  >>> f"{denoising(jnp.array([0.25]))[0]}"
  '0.25'
  """
  return error


@checked
def denoising_value(
  prediction: Float32[Array, "*latents y x c"],
  target: Float32[Array, "*latents y x c"],
) -> Float32[Array, "*latents"]:
  """Value of each latent: minus half the mean squared error of a prediction.

      value = -½ mean over y, x, c of (prediction - target)²

  Use: as `chosen_logp` and `rejected_logp` of losses without a reference.

  Args:
    prediction: what the model predicts: noise, velocity or the clean latent.
    target: what it should have predicted.

  Returns: one value per latent; 0 where the prediction is right, else below.

  Reference: Wallace et al. 2023 (https://arxiv.org/abs/2311.12908), and the
  authors' code for the half, which eq. 14 lacks, and the mean instead of a sum.
  Diffusers' script for Stable Diffusion 1.5 has no half: its beta of 2500 is
  5000 here.

  >>> f"{denoising_value(jnp.ones((1, 2, 2, 4)), jnp.zeros((1, 2, 2, 4)))[0]}"
  '-0.5'
  """
  return -0.5 * denoising_error(prediction, target)


@checked
def denoising_logratio(
  prediction: Float32[Array, "*latents y x c"],
  ref_prediction: Float32[Array, "*latents y x c"],
  target: Float32[Array, "*latents y x c"],
) -> Float32[Array, "*latents"]:
  """How much better than its reference a model denoises each latent.

      logratio = ½ mean (ref_prediction - target)²
                 - ½ mean (prediction - target)²

  Use: as every `logratio` of a loss. `dpo(chosen_logratio, rejected_logratio,
  beta=5000)` is Diffusion-DPO; lists of latents give the `values` of
  `rank_dpo` and other listwise losses.

  A pair shares its timestep and its noise, as in the authors' code. A weight
  over timesteps multiplies the result.

  Args:
    prediction: what the trained model predicts: noise, velocity or latent.
    ref_prediction: what the frozen reference predicts from the same input.
    target: what both should have predicted.

  Returns: one value per latent; exactly 0 where both models predict the same,
  and above where the trained model is closer to the target.

  Reference: Wallace et al. 2023, eq. 14 (https://arxiv.org/abs/2311.12908), and
  the authors' code.

  >>> zero, one = jnp.zeros((1, 2, 2, 4)), jnp.ones((1, 2, 2, 4))
  >>> f"{denoising_logratio(zero, one, zero)[0]}"
  '0.5'
  """
  # r² - p² as (r - p)(r + p): the two errors differ by a thousandth of
  # themselves, and a beta of 5000 multiplies what rounding their means leaves.
  error, ref_error = prediction - target, ref_prediction - target
  gain = (ref_prediction - prediction) * (ref_error + error)
  return 0.5 * jnp.mean(gain, axis=_LATENT)


@checked
def denoising_step_logp(
  next_latent: Float32[Array, "*latents y x c"],
  mean: Float32[Array, "*latents y x c"],
  std: Float32[Array, "*latents"],
) -> Float32[Array, "*latents"]:
  """Log-density of each sampling step, averaged over elements.

      logp = mean over y, x, c of log N(next_latent; mean, std²)

  Use: where images were sampled by the model and the steps of the sampler are
  what is learned from: policy gradients, `pso`.

  A last step without noise has no density: leave it out.

  Args:
    next_latent: where the sampler went.
    mean: where the model's prediction alone would have taken it.
    std: standard deviation of the noise that the step added, above 0.

  Returns: one log-density per latent, in nats an element.

  Reference: Black et al. 2023 (https://arxiv.org/abs/2305.13301);
  the average instead of the sum is that of the published code of DDPO and PSO.

  >>> x = jnp.zeros((1, 2, 2, 4))
  >>> f"{denoising_step_logp(x, x, jnp.ones(1))[0]:.4f}"
  '-0.9189'
  """
  error = jnp.mean((next_latent - mean) ** 2, axis=_LATENT)
  return -error / (2.0 * std**2) - jnp.log(std) - 0.5 * math.log(2.0 * math.pi)


@checked
def denoising_step_logratio(
  next_latent: Float32[Array, "*latents y x c"],
  mean: Float32[Array, "*latents y x c"],
  ref_mean: Float32[Array, "*latents y x c"],
  std: Float32[Array, "*latents"],
) -> Float32[Array, "*latents"]:
  """Log-ratio of two models' densities of each sampling step.

      logratio = mean over y, x, c of log N(next_latent; mean, std²)
                 - mean over y, x, c of log N(next_latent; ref_mean, std²)

  Use: as the `step_logratio` of `pso`.

  Args:
    next_latent: where the sampler went.
    mean: where the trained model's prediction alone would have taken it.
    ref_mean: where the reference's would have.
    std: standard deviation of the noise that the step added, above 0.

  Returns: one log-ratio per latent, in nats an element; exactly 0 where both
  models agree.

  Reference: Miao et al. 2024 and their code (https://arxiv.org/abs/2410.03190).

  >>> zero, one = jnp.zeros((1, 2, 2, 4)), jnp.ones((1, 2, 2, 4))
  >>> f"{denoising_step_logratio(zero, zero, one, jnp.ones(1))[0]}"
  '0.5'
  """
  # The logarithm of std falls out, and products round less than squares.
  error, ref_error = next_latent - mean, next_latent - ref_mean
  gain = (mean - ref_mean) * (error + ref_error)
  return jnp.mean(gain, axis=_LATENT) / (2.0 * std**2)


@loss("pair")
def smpo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  chosen_score: Float32[Array, "*pairs"],
  rejected_score: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 5000.0,
  gamma: Scalar = 10.0,
  score_range: Scalar = 0.28201571106910706 - 0.11543526500463486,
) -> Float32[Array, "*pairs"]:
  """Smoothed preference optimization loss of each pair of images.

      loss = -log σ((2 p - 1) gamma beta (chosen - rejected))
      p    = σ((chosen_score - rejected_score) / score_range)

  Use: where a reward model says how sure a preference is: near ties pull
  little, clear pairs up to 4.6 times as hard as Diffusion-DPO.

  A pair whose chosen score is the lower one is turned around; the authors
  label by the score, so that there is none. Equal scores have no gradient, at
  a loss of log 2. In the paper the noise of each latent comes from inverting
  it by the current model (ReNoise), which is the caller's choice of input.

  Args:
    chosen_logratio: `denoising_logratio` of the preferred image.
    rejected_logratio: the same for the other image.
    chosen_score: the reward model's score of the preferred image.
    rejected_score: the same for the other image.
    beta: strength of the pull towards the reference; the authors take 5000 for
      SDXL and 2000 for Stable Diffusion 1.5.
    gamma: strength of a sure pair (p = 1) relative to Diffusion-DPO.
    score_range: largest minus smallest score of the whole data set, above 0;
      that of PickScore, as a cosine, over Pick-a-Pic v2.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Lu et al. 2025 (https://arxiv.org/abs/2506.02698), where α is
  gamma p, and the authors' code for the score's range.

  >>> one = jnp.ones(1)
  >>> f"{smpo(one, -one, 0.02 * one, 0.01 * one, beta=0.1)[0]:.4f}"
  '0.6636'
  """
  check_range("score_range", score_range, 1e-30, math.inf)
  # 2 σ(x) - 1 is tanh(x / 2).
  sureness = jnp.tanh(0.5 * (chosen_score - rejected_score) / score_range)
  margin = beta * (chosen_logratio - rejected_logratio)
  return -jax.nn.log_sigmoid(gamma * sureness * margin)
