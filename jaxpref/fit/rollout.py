"""Two images of each prompt that the policy samples within a training step.

All noise of an image is a function of the seed, its prompt's number, how often
that was drawn and which of the two it is: the same on any mesh, in any batch
and after a restart.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8
import numpy as np

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.image_reward import find_reward
from jaxpref.fit.loss import find_loss, is_online
from jaxpref.fit.noising import Transitions, trajectory_keys
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.ops.noise import Latents
from jaxpref.sample.denoise import Predict, denoise_trajectory, draws
from jaxpref.sample.samplers import SAMPLERS, Sampler, make_sampler
from jaxpref.score.raters import Rater
from jaxpref.types import ImageBatch

IMAGES = 2
"""Of a prompt."""


class Rollout(NamedTuple):
  """The steps with noise of all images, and how the images were liked."""

  made: Transitions
  reward: Float32[Array, " images"]


def roll_out(
  predict: Predict,
  decode: Callable[[Latents], UInt8[Array, "images Y X 3"]],
  rate: Rater,
  sampler: Sampler,
  batch: ImageBatch,
  *,
  prediction: str,
  seed: int,
) -> Rollout:
  """Samples two images of the prompt of every slot, and rates them.

  Args:
    predict: the policy; no gradient may flow through it.
    decode: latents to pixels.
    rate: pixels to rewards.
    sampler: of `noisy_sampler`.
    batch: one micro-batch.
    prediction: what the policy predicts; see `ops.noise`.
    seed: of all noise.

  Returns: the rollout. A last step without noise has no density, and is not in
  it.
  """
  keys = trajectory_keys(batch, seed, IMAGES)
  noise, draw = draws(keys, batch.mean.shape[1:])
  states, _ = denoise_trajectory(
    predict,
    sampler.steps,
    sampler.start * noise,
    prediction=prediction,
    draw=draw,
  )
  noisy = np.flatnonzero(sampler.steps.std)
  by_image = jnp.moveaxis(states, 0, 1)
  made = Transitions(
    sampler.steps.at(noisy), by_image[:, noisy], by_image[:, noisy + 1]
  )
  return Rollout(made, rate(decode(states[-1])))


def noisy_sampler(settings: config.Config, scheduler: Scheduler) -> Sampler:
  """The sampler of `config.sample`, which must have steps to learn from.

  Raises UserError for one that adds noise in no step.
  """
  given = settings.sample
  sampler = make_sampler(given.sampler, scheduler, given.steps)
  if np.any(sampler.steps.std):
    return sampler
  name = given.sampler or scheduler.sampler
  several = max(2, given.steps)
  noisy = [each for each in SAMPLERS if _adds_noise(each, scheduler, several)]
  mend = (
    f"Set config.sample.sampler to one of {', '.join(noisy)}"
    if noisy
    else "There is none for flow models yet: choose another model or loss"
  )
  few = ", and config.sample.steps to at least 2" if given.steps < 2 else ""
  raise UserError(
    f"config.loss.name {settings.loss.name!r} learns from the noise that a "
    f"sampler adds, and {given.steps} steps of {name!r} add none. {mend}{few}."
  )


def _adds_noise(name: str, scheduler: Scheduler, steps: int) -> bool:
  try:
    return bool(np.any(make_sampler(name, scheduler, steps).steps.std))
  except UserError:  # not with this model, or so many steps
    return False


def check_rollout(settings: config.Config) -> None:
  """Raises UserError where a loss of sampled images cannot have them.

  Of other losses nothing is asked.
  """
  if not is_online(find_loss(settings.loss)):
    return
  what = f"config.loss.name {settings.loss.name!r}"
  find_reward(settings.score)
  if settings.sample.guidance > 1.0:
    raise UserError(
      f"{what} samples as few-step models do, without guidance, and "
      f"config.sample.guidance is {settings.sample.guidance}. Set it to 1.0."
    )
  if settings.sample.negative_prompt or settings.sample.guidance_rescale:
    raise UserError(
      f"{what} samples without guidance, of which "
      "config.sample.negative_prompt and guidance_rescale are a part. Leave "
      "them out."
    )
  for field in dataclasses.fields(settings.diffusion):
    value = getattr(settings.diffusion, field.name)
    if value != field.default:
      raise UserError(
        f"config.diffusion.{field.name} is {value}, and {what} does not noise "
        "the data's images: it learns from those that it samples, all of their "
        "steps. Leave it out."
      )
  default = config.Data()
  for name in ("encode", "flip", "aspect_buckets"):
    value = getattr(settings.data, name)
    if value != getattr(default, name):
      raise UserError(
        f"config.data.{name} is {value}, and {what} learns from the images "
        "that it samples, all of one size: it is for those of the data. Leave "
        "it out."
      )
  if settings.reference.mode == "cached":
    raise UserError(
      f"config.reference.mode is 'cached', and {what} samples other images in "
      "each step, of which nothing can be cached. Set it to auto, live or base."
    )
