"""What a diffusion model is asked in training: noisy latents and a target.

The posterior's noise, the timestep and the noise of an image are functions of
the seed, its prompt's number and how often that was drawn: the same on any
mesh, in any batch and after a restart.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key
import numpy as np

from jaxpref import config
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.ops.noise import (
  add_noise,
  draw_flow_times,
  draw_timesteps,
  level_at,
  target,
)
from jaxpref.sample.denoise import draws, step_mean
from jaxpref.sample.invert import ddim_inverse_from, implied_noise, renoise
from jaxpref.sample.samplers import Sampler, Step
from jaxpref.types import ImageBatch

# From noisy latents and the timestep of each, what a model predicts.
Ask = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Noising:
  """What the model is asked: noisy latents, and what it should predict."""

  noisy: Float32[Array, "slots y x c"]
  timestep: Float32[Array, " slots"]
  target: Float32[Array, "slots y x c"]


def noise_images(
  batch: ImageBatch,
  scheduler: Scheduler,
  settings: config.Diffusion,
  seed: int,
) -> Noising:
  """Draws a latent of each posterior, a timestep and noise, and mixes them.

  Args:
    batch: one micro-batch.
    scheduler: of the model.
    settings: what the images of a prompt share.
    seed: of all that is drawn.
  """
  keys, kind = _keys(batch, seed), scheduler.prediction_type
  latent = _draw_latents(batch, keys)
  own = keys.prompt if settings.share_noise else keys.image
  noise = _normal(_for(own, 1), latent.shape)
  if kind == "flow":
    time = draw_flow_times(_times(keys, settings), shift=scheduler.shift)
    level, timestep = (1.0 - time, time), scheduler.num_train_timesteps * time
  else:
    drawn, level = _draw_level(keys, scheduler, settings)
    timestep = drawn.astype(jnp.float32)
  noisy = add_noise(latent, noise, *level)
  return Noising(noisy, timestep, target(kind, latent, noise, *level))


def invert_images(
  ask: Ask,
  batch: ImageBatch,
  scheduler: Scheduler,
  settings: config.Diffusion,
  seed: int,
) -> Noising:
  """Draws a latent and a timestep, and lets the model say the noise.

  The latent goes up a few steps of DDIM's inversion, each asked twice, until
  it is past its timestep; the noise that leads there in one step is what the
  model must predict.

  Args:
    ask: what the model that trains predicts; no gradient may flow through it.
    batch: one micro-batch.
    scheduler: of the model; not of a flow model.
    settings: inversion_steps, and whether the timestep is shared.
    seed: of what is drawn.

  Reference: the code of Lu et al. 2025 (https://arxiv.org/abs/2506.02698).
  """
  keys, kind = _keys(batch, seed), scheduler.prediction_type
  latent = _draw_latents(batch, keys)
  drawn, level = _draw_level(keys, scheduler, settings)
  noisy = renoise(
    lambda place, now: ask(place, jnp.broadcast_to(now, drawn.shape)),
    ddim_inverse_from(scheduler, settings.inversion_steps),
    latent,
    prediction=kind,
    until=drawn,
  )
  noise = implied_noise(noisy, latent, *level)
  asked = target(kind, latent, noise, *level)
  return Noising(noisy, drawn.astype(jnp.float32), asked)


class Transitions(NamedTuple):
  """The steps with noise that images took; those of a slot stand together."""

  steps: Step  # numbers of each
  before: Float32[Array, "images steps y x c"]  # where each began
  after: Float32[Array, "images steps y x c"]  # where it went


def noise_steps(
  batch: ImageBatch,
  sampler: Sampler,
  settings: config.Diffusion,
  prediction: str,
  seed: int,
) -> tuple[Transitions, Float32[Array, "slots steps y x c"]]:
  """Noises each image to the timesteps of a sampler, along one of its ways.

  The sampler runs with what a perfect model would predict of the image. So
  where a step begins is the image under as much noise as its timestep has, and
  where it goes is a draw of what the sampler does from there on to this image.

  Args:
    batch: one micro-batch.
    sampler: of `rollout.noisy_sampler`.
    settings: whether the images of a prompt share all noise.
    prediction: what the model predicts; see `ops.noise`.
    seed: of all that is drawn.

  Returns: the steps with noise, and what a perfect model predicts at each.
  """
  keys = _keys(batch, seed)
  latent = _draw_latents(batch, keys)
  own = keys.prompt if settings.share_noise else keys.image
  _, y, x, c = latent.shape
  noise, draw = draws(_for(own, 5), (y, x, c))
  state, way = latent, []
  noisy = np.flatnonzero(sampler.steps.std)
  for number in range(noisy[-1] + 1):
    step = sampler.steps.at(number)
    if number:
      noise = (state - step.alpha * latent) / step.sigma
    else:
      state = add_noise(latent, noise, step.alpha, step.sigma)
    asked = target(prediction, latent, noise, step.alpha, step.sigma)
    after = step_mean(prediction, asked, state, step) + step.std * draw(
      jnp.int32(number)
    )
    way.append((state, after, asked))
    state = after
  before, after, asked = (
    jnp.stack([each[i] for i in noisy], axis=1)
    for each in zip(*way, strict=True)
  )
  return Transitions(sampler.steps.at(noisy), before, after), asked


def trajectory_keys(
  batch: ImageBatch, seed: int, count: int
) -> Key[Array, " images"]:
  """A key for each of `count` images of every slot, slot by slot.

  Of the slot's prompt, so that slots of one prompt would have the same.
  """
  own = _for(_keys(batch, seed).prompt, 4)
  return jnp.stack([_for(own, i) for i in range(count)], axis=1).reshape(-1)


@dataclasses.dataclass(frozen=True)
class _Keys:
  prompt: Key[Array, " slots"]
  image: Key[Array, " slots"]


def _keys(batch: ImageBatch, seed: int) -> _Keys:
  fold = jax.vmap(jax.random.fold_in)
  base = jnp.broadcast_to(jax.random.key(seed), batch.draw.shape)
  prompt = fold(fold(base, batch.slots.example_id), batch.draw)
  return _Keys(prompt, fold(_for(prompt, 3), batch.item))


def _for(keys: Key[Array, " slots"], purpose: int) -> Key[Array, " slots"]:
  return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


def _normal(
  keys: Key[Array, " slots"], shape: tuple[int, ...]
) -> Float32[Array, "slots y x c"]:
  return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def _draw_latents(
  batch: ImageBatch, keys: _Keys
) -> Float32[Array, "slots y x c"]:
  return batch.mean + batch.std * _normal(_for(keys.image, 0), batch.mean.shape)


def _draw_level(
  keys: _Keys, scheduler: Scheduler, settings: config.Diffusion
) -> tuple[Int32[Array, " slots"], tuple[Array, Array]]:
  """A diffusion model's timestep for each slot, and its alpha and sigma."""
  allowed = settings.timesteps or range(scheduler.num_train_timesteps)
  drawn = draw_timesteps(_times(keys, settings), allowed)
  table = jnp.asarray(scheduler.alpha_bar(), jnp.float32)
  return drawn, level_at(drawn, table)


def _times(keys: _Keys, settings: config.Diffusion) -> Key[Array, " slots"]:
  return _for(keys.prompt if settings.share_timestep else keys.image, 2)
