"""Preference losses of rectified-flow models of images and videos.

Time runs from 0, the data, to 1, the noise: x_t = (1 - t) latent + t noise,
and the model predicts the velocity noise - latent. A video's value is the mean
of the values of its frames.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.diffusion import denoising_logratio, denoising_value
from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, checked


@checked
def flow_value(
  velocity: Float32[Array, "*latents y x c"],
  latent: Float32[Array, "*latents y x c"],
  noise: Float32[Array, "*latents y x c"],
) -> Float32[Array, "*latents"]:
  """Value of each latent: minus half the mean squared error of its velocity.

      value = -½ mean over y, x, c of (velocity - (noise - latent))²

  Use: as `chosen_logp` and `rejected_logp` of losses without a reference.

  Args:
    velocity: what the model predicts at (1 - t) latent + t noise.
    latent: the data, where t is 0.
    noise: where t is 1.

  Returns: one value per latent; 0 where the prediction is right, else below.

  Reference: Liu et al. 2025 (https://arxiv.org/abs/2501.13918).

  >>> one = jnp.ones((1, 2, 2, 4))
  >>> f"{flow_value(one, one, 3 * one)[0]}"
  '-0.5'
  """
  return denoising_value(velocity, noise - latent)


@checked
def flow_logratio(
  velocity: Float32[Array, "*latents y x c"],
  ref_velocity: Float32[Array, "*latents y x c"],
  latent: Float32[Array, "*latents y x c"],
  noise: Float32[Array, "*latents y x c"],
) -> Float32[Array, "*latents"]:
  """How much better than its reference a flow model predicts each velocity.

      logratio = ½ mean (ref_velocity - v)² - ½ mean (velocity - v)²
      v        = noise - latent

  Use: as every `logratio` of a loss, `flow_dpo` and `dpo` first of all.

  A pair shares its time and its noise.

  Args:
    velocity: what the trained model predicts at (1 - t) latent + t noise.
    ref_velocity: what the frozen reference predicts there.
    latent: the data, where t is 0.
    noise: where t is 1.

  Returns: one value per latent; exactly 0 where both models predict the same,
  and above where the trained model is closer.

  Reference: Liu et al. 2025 (https://arxiv.org/abs/2501.13918).

  >>> one = jnp.ones((1, 2, 2, 4))
  >>> f"{flow_logratio(2 * one, one, one, 3 * one)[0]}"
  '0.5'
  """
  return denoising_logratio(velocity, ref_velocity, noise - latent)


@loss("pair")
def flow_dpo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  time: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 100.0,
  power: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Flow-DPO loss of each pair of images or videos.

      loss = -log σ(beta (1 - t)^power (chosen - rejected))

  Use: DPO for rectified-flow models. Constant strength (power 0) is what the
  authors recommend, and is `dpo` of the same log-ratios; power 2 is what the
  derivation gives, the strength of Diffusion-DPO on the noise; at the same beta
  it drifts further from the reference.

  Args:
    chosen_logratio: `flow_logratio` of the preferred one.
    rejected_logratio: the same for the other.
    time: t of both, from 0, the data, to 1, the noise. Outside it counts as
      the nearer end.
    beta: strength of the pull towards the reference. 100 goes with errors that
      are averaged over elements; the paper's 500 goes with sums.
    power: how the strength falls with time.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Liu et al. 2025, Flow-DPO (https://arxiv.org/abs/2501.13918); beta
  of the authors' code for Stable Diffusion 3.5, which averages.

  >>> x = jnp.array([0.01])
  >>> f"{flow_dpo(x, -x, 0.5 * jnp.ones(1), power=2)[0]:.4f}"
  '0.4741'
  """
  # By logarithms, so that a traced power has a gradient at t = 1 as well.
  left = jnp.clip(1.0 - time, 1e-30, 1.0)
  strength = beta * jnp.exp(power * jnp.log(left))
  return -jax.nn.log_sigmoid(strength * (chosen_logratio - rejected_logratio))


@loss("response")
def flow_rwr(
  error: Float32[Array, "*responses"],
  score: Float32[Array, "*responses"],
  *,
  beta: Scalar = 1.0,
) -> Float32[Array, "*responses"]:
  """Reward-weighted regression loss of each image or video.

      loss = exp(score / beta) error

  Use: where answers have scores of their own instead of comparisons; it only
  ever imitates, the better ones more. In the paper `flow_dpo` gained more.

  The exponent is cut at 60, which keeps float32 finite.

  Args:
    error: `denoising_error` of each velocity; -2 times its `flow_value`.
    score: its reward.
    beta: strength of the pull towards the distribution of the data: smaller
      follows the highest scores alone. The paper folds it into the score.

  Returns: one loss per response; the error itself where the score is 0.

  Reference: Liu et al. 2025, Flow-RWR (https://arxiv.org/abs/2501.13918). The
  authors' later code weights by the score itself, without the exponential.

  >>> f"{flow_rwr(jnp.array([1.0]), jnp.array([1.0]))[0]:.4f}"
  '2.7183'
  """
  return jnp.exp(jnp.minimum(score / beta, 60.0)) * error
