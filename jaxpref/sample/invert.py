"""From latents to the noise that a deterministic sampler makes them of."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32
import numpy as np

from jaxpref.errors import UserError
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.ops.noise import Latents, separate
from jaxpref.sample.denoise import Predict
from jaxpref.sample.samplers import Step, steps_between


def ddim_inverse(scheduler: Scheduler, steps: int) -> Step:
  """DDIM's steps upwards, each told the timestep where it goes.

  It is that of diffusers' DDIMInverseScheduler, and the one for which a model
  that is asked at the right place (`renoise`) inverts `ddim` exactly.

  Reference: Song et al. 2020, section 4.3 (https://arxiv.org/abs/2010.02502).
  """
  visited, alpha_bar, every = _rising(scheduler, steps)
  before = visited - every
  first = 1.0 if scheduler.set_alpha_to_one else alpha_bar[0]
  leaves = np.where(before >= 0, alpha_bar[np.maximum(before, 0)], first)
  return steps_between(visited, leaves, alpha_bar[visited], 0.0)


def ddim_inverse_from(scheduler: Scheduler, steps: int) -> Step:
  """DDIM's steps upwards, each told the timestep where it begins.

  The first is told a negative one, and begins at the first timestep's noise.

  Reference: the code of Lu et al. 2025 (https://arxiv.org/abs/2506.02698), by
  diffusers 0.20; it takes 10 steps for SDXL and 5 for Stable Diffusion 1.5.
  """
  visited, alpha_bar, every = _rising(scheduler, steps)
  before = visited - every
  leaves = alpha_bar[np.maximum(before, 0)]
  return steps_between(before, leaves, alpha_bar[visited], 0.0)


def renoise(
  predict: Predict,
  steps: Step,
  latents: Latents,
  *,
  prediction: str,
  weights: Sequence[float] = (0.5, 0.5),
  until: Int32[Array, " images"] | None = None,
) -> Latents:
  """Inverts latents, asking the model again where each step has led.

  Args:
    predict: the model; usually without guidance.
    steps: of an inversion.
    latents: of the images.
    prediction: what the model predicts.
    weights: of the predicted noises of a step, which sum to 1: first that at
      its beginning, then each time where the last has led. (1,) is DDIM
      inversion, (0.5, 0.5) what SmPO trains with, and (0, …, 0, 1) approaches
      the exact inverse.
    until: a timestep for each image, which leaves out the steps that are told
      this one or a later one; None takes all.

  Returns: the noisy latents of the last step that was taken.

  Reference: Garibi et al. 2024, algorithm 1 (https://arxiv.org/abs/2403.14602),
  without its corrections of the noise.
  """

  def body(latents: jax.Array, step: Step) -> tuple[jax.Array, None]:
    alpha, sigma = jnp.asarray(step.alpha), jnp.asarray(step.sigma)

    def move(noise: jax.Array) -> jax.Array:
      clean = (latents - sigma * noise) / alpha
      return step.to_latent * clean + step.to_noise * noise

    place, level, noise = latents, (alpha, sigma), jnp.zeros_like(latents)
    for weight in weights:
      output = predict(place, step.timestep).astype(jnp.float32)
      _, found = separate(prediction, output, place, *level)
      noise = noise + weight * found
      place, level = move(found), (step.to_latent, step.to_noise)
    moved = move(noise)
    if until is not None:
      live = step.timestep < until
      moved = jnp.where(live[:, None, None, None], moved, latents)
    return moved, None

  return jax.lax.scan(body, latents, steps)[0]


def implied_noise(
  noisy: Latents, latents: Latents, alpha: jax.Array, sigma: jax.Array
) -> Latents:
  """The noise that makes these noisy latents of these latents."""
  return separate("sample", latents, noisy, alpha, sigma)[1]


def _rising(
  scheduler: Scheduler, steps: int
) -> tuple[np.ndarray, np.ndarray, int]:
  if scheduler.timestep_spacing == "linspace":
    raise UserError(
      "inversion with timestep_spacing 'linspace' is not defined; take "
      "'leading' or 'trailing'."
    )
  visited = scheduler.spaced(steps)[::-1]
  every = scheduler.num_train_timesteps // steps
  return visited, scheduler.alpha_bar(), every
