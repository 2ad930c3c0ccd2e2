"""From noise to latents: the one loop that all samplers of images share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key

from jaxpref.losses.diffusion import denoising_step_logp
from jaxpref.ops.noise import Latents, separate
from jaxpref.sample.samplers import Step
from jaxpref.types import checked

Predict = Callable[[Latents, Float32[Array, ""]], Latents]
"""A model: noisy latents and the timestep it is told, to its prediction."""

Draw = Callable[[Int32[Array, ""]], Latents]
"""The number of a step to its standard normal noise."""


class Trajectory(NamedTuple):
  """All that a sampler passed through, as policy gradients need it."""

  latents: Float32[Array, "states images y x c"]  # steps + 1, the noise first
  logp: Float32[Array, "steps images"]  # nats an element; 0 without fresh noise


def denoise(
  predict: Predict,
  steps: Step,
  noise: Latents,
  *,
  prediction: str,
  draw: Draw | None = None,
) -> Latents:
  """Runs a sampler.

  Args:
    predict: the model, guidance included.
    steps: of a sampler.
    noise: where it begins: of standard deviation `Sampler.start`.
    prediction: what the model predicts; see `ops.noise`.
    draw: fresh noise of each step; None where no step adds any.

  Returns: the last step's latents.
  """

  def body(state: _State, item: tuple[Step, jax.Array]) -> tuple[_State, None]:
    state, _ = _advance(predict, prediction, draw, state, item)
    return state, None

  (latents, _), _ = jax.lax.scan(body, _begin(noise), _numbered(steps))
  return latents


def denoise_trajectory(
  predict: Predict,
  steps: Step,
  noise: Latents,
  *,
  prediction: str,
  draw: Draw | None = None,
) -> Trajectory:
  """As `denoise`, with every state and the log-density of every step.

  Training takes `step_mean` of these states under its own parameters, and
  `denoising_step_logp` or `denoising_step_logratio` of that.
  """

  def body(state: _State, item: tuple[Step, jax.Array]) -> tuple[_State, tuple]:
    state, mean = _advance(predict, prediction, draw, state, item)
    return state, (state[0], step_logp(state[0], mean, item[0]))

  _, (latents, logp) = jax.lax.scan(body, _begin(noise), _numbered(steps))
  return Trajectory(jnp.concatenate([noise[None], latents]), logp)


@checked
def step_mean(
  prediction: str, output: Latents, noisy: Latents, step: Step
) -> Latents:
  """Where one step goes but for its fresh noise.

  Args:
    prediction: what the model predicts.
    output: what it predicted at `noisy`.
    noisy: the state before the step.
    step: numbers of that step, of a sampler that does not extrapolate.
  """
  latent, noise = _separate(prediction, output, noisy, step)
  return step.to_latent * latent + step.to_noise * noise


@checked
def step_logp(
  landed: Float32[Array, "images y x c"],
  mean: Float32[Array, "images y x c"],
  step: Step,
) -> Float32[Array, " images"]:
  """Log-density of where a step landed, averaged over elements.

  Returns: nats an element; 0, without gradient, where the step adds no noise.
  """
  noisy = step.std > 0.0
  std = jnp.full(landed.shape[:1], jnp.where(noisy, step.std, 1.0))
  return jnp.where(noisy, denoising_step_logp(landed, mean, std), 0.0)


def image_keys(
  seed: Int32[Array, ""] | int, numbers: Int32[Array, " images"]
) -> Key[Array, " images"]:
  """A key for each image: of the seed and its number, never of its row."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return fold(jax.random.key(seed), numbers)


def draws(
  keys: Key[Array, " images"], shape: tuple[int, int, int]
) -> tuple[Float32[Array, "images y x c"], Draw]:
  """Standard normal noise to begin with, and that of each step."""

  def draw(step: jax.Array | int) -> jax.Array:
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(step_keys)

  return draw(0), lambda step: draw(step + 1)


_State = tuple[jax.Array, jax.Array]  # where we are; the last step's latent


def _begin(noise: jax.Array) -> _State:
  return noise, jnp.zeros_like(noise)


def _numbered(steps: Step) -> tuple[Step, jax.Array]:
  return steps, jnp.arange(len(steps.alpha), dtype=jnp.int32)


def _advance(
  predict: Predict,
  prediction: str,
  draw: Draw | None,
  state: _State,
  item: tuple[Step, jax.Array],
) -> tuple[_State, jax.Array]:
  """The state after a step, and where it would be without fresh noise."""
  (noisy, last), (step, number) = state, item
  output = predict(noisy, step.timestep)
  latent, noise = _separate(prediction, output, noisy, step)
  further = step.extrapolate * (latent - last)
  mean = step.to_latent * (latent + further) + step.to_noise * (
    noise - step.alpha / step.sigma * further
  )
  landed = mean + step.std * draw(number) if draw else mean
  return (landed, latent), mean


def _separate(
  prediction: str, output: jax.Array, noisy: jax.Array, step: Step
) -> tuple[jax.Array, jax.Array]:
  output = output.astype(jnp.float32)
  alpha, sigma = jnp.asarray(step.alpha), jnp.asarray(step.sigma)
  latent, noise = separate(prediction, output, noisy, alpha, sigma)
  return jnp.sqrt(1.0 - step.skip) * latent + step.skip * noisy, noise
