"""Distils a few-step sampler of a small diffusion model, for simulations.

The simplest thing that works: the student learns to say at once where the
teacher's deterministic sampler ends. It is told the teacher's own states, and
no critic judges it.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32
import numpy as np
import optax

from jaxpref.errors import UserError
from jaxpref.models.build import bind
from jaxpref.models.sdxl.image_model import ImageModel, tokenize
from jaxpref.models.sdxl.pipeline import encode_text
from jaxpref.ops.noise import separate, snr
from jaxpref.sample.denoise import denoise_trajectory
from jaxpref.sample.guidance import unguided
from jaxpref.sample.samplers import Sampler, ddim
from jaxpref.types import Params

_AT_ONCE = 128  # images that the teacher makes


def distill(
  model: ImageModel,
  params: Mapping[str, Params],
  prompts: list[str],
  sampler: Sampler,
  *,
  teacher_steps: int = 20,
  images: int = 2048,
  steps: int = 600,
  batch_size: int = 64,
  learning_rate: float = 1e-3,
  seed: int = 0,
) -> Params:
  """A UNet that needs no more steps than `sampler` takes; on one device.

      loss = mean max(1, SNR) (latent(x_t) - x_0)²

  x_t is where the teacher's DDIM is at one of the sampler's timesteps, and x_0
  where that comes to.

  Args:
    model: the teacher, of a diffusion model that takes no sizes.
    params: its weights by part.
    prompts: of the images that it makes, in turn.
    sampler: of the student; its timesteps are among those of the teacher.
    teacher_steps: of DDIM, trailing.
    images: how many the teacher makes.
    steps: of Adam, whose rate falls to zero as a cosine.
    batch_size: states a step.
    learning_rate: the first.
    seed: of what is drawn.

  Returns: the student's weights, which begin as the teacher's.

  Reference: Luhman & Luhman 2021 (https://arxiv.org/abs/2101.02388), with the
  states between as Song et al. 2023 (https://arxiv.org/abs/2303.01469) have
  them; the weight is that of Salimans & Ho 2022
  (https://arxiv.org/abs/2202.00512).
  """
  if model.takes_sizes:
    raise UserError(
      f"{model.pipeline.folder} is told sizes, as SDXL is, and a student is "
      "made of a plain Stable Diffusion. Choose another model."
    )
  unet, kind = model.definitions["unet"], model.scheduler.prediction_type
  ids, _ = tokenize(model, prompts)
  context, _ = jax.jit(functools.partial(encode_text, model.definitions))(
    {x: params[x] for x in params if x in ids}, ids
  )
  told = jnp.arange(images) % len(prompts)
  states, latent = _teach(
    model, params["unet"], context, told, sampler, teacher_steps, seed
  )
  alpha, sigma, timestep = (
    jnp.asarray(getattr(sampler.steps, name))
    for name in ("alpha", "sigma", "timestep")
  )
  weight = jnp.maximum(1.0, snr(alpha, sigma))
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(learning_rate, steps)),
  )

  def loss(
    student: Params, noisy: Array, text: Array, step: Array, goal: Array
  ) -> Array:
    output = bind(unet, student)(noisy, timestep[step], text, None)
    found, _ = separate(
      kind, output.astype(jnp.float32), noisy, alpha[step], sigma[step]
    )
    error = jnp.mean((found - goal) ** 2, axis=(1, 2, 3))
    return jnp.mean(weight[step] * error)

  @jax.jit
  def update(student: Params, state: Any, taught: Any, key: Any) -> Any:
    states, latent, context = taught
    keys = jax.random.split(key)
    image = jax.random.randint(keys[0], (batch_size,), 0, images)
    step = jax.random.randint(keys[1], (batch_size,), 0, len(alpha))
    grads = jax.grad(loss)(
      student, states[image, step], context[told[image]], step, latent[image]
    )
    updates, state = tx.update(grads, state)
    return optax.apply_updates(student, updates), state

  student, taught = params["unet"], (states, latent, context)
  state, key = jax.jit(tx.init)(student), jax.random.key(seed)
  for number in range(steps):
    each = jax.random.fold_in(key, number)
    student, state = update(student, state, taught, each)
  return student


def _teach(
  model: ImageModel,
  unet: Params,
  context: Float32[Array, "prompts _ _"],
  told: Int32[Array, " images"],
  sampler: Sampler,
  steps: int,
  seed: int,
) -> tuple[
  Float32[Array, "images steps y x c"], Float32[Array, "images y x c"]
]:
  """The teacher's states at the sampler's timesteps, and where it ends."""
  scheduler = dataclasses.replace(
    model.scheduler, timestep_spacing="trailing", set_alpha_to_one=True
  )
  visited = ddim(scheduler, steps)
  wanted = np.searchsorted(
    -visited.steps.timestep, -np.asarray(sampler.steps.timestep)
  )
  assert (visited.steps.timestep[wanted] == sampler.steps.timestep).all()
  definition = model.definitions["unet"]
  side = definition.config.sample_size

  @jax.jit
  def trajectory(unet: Params, noise: Array, context: Array) -> Array:
    model_of = lambda x, time, text: bind(definition, unet)(x, time, text, None)
    states = denoise_trajectory(
      unguided(model_of, context),
      visited.steps,
      noise,
      prediction=scheduler.prediction_type,
    ).latents
    return jnp.moveaxis(states, 0, 1)

  shape = (len(told), side, side, definition.config.in_channels)
  noise = sampler.start * jax.random.normal(jax.random.key(seed), shape)
  parts = [
    trajectory(unet, noise[i : i + _AT_ONCE], context[told[i : i + _AT_ONCE]])
    for i in range(0, len(told), _AT_ONCE)
  ]
  whole = jnp.concatenate(parts)
  return whole[:, wanted], whole[:, -1]
