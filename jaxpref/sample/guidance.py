"""Classifier-free guidance: two predictions an image, in one call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.ops.noise import Latents
from jaxpref.sample.denoise import Predict
from jaxpref.types import Scalar, checked


@checked
def guide(
  unconditional: Latents, conditional: Latents, scale: Scalar
) -> Latents:
  """Moves a prediction away from that without the prompt.

      unconditional + scale (conditional - unconditional)

  Reference: Ho and Salimans 2022, eq. 6 (https://arxiv.org/abs/2207.12598),
  whose weight is scale - 1.
  """
  return unconditional + scale * (conditional - unconditional)


@checked
def rescale(guided: Latents, conditional: Latents, amount: Scalar) -> Latents:
  """Gives a guided prediction back the contrast that it had without guidance.

  `amount` mixes: 0 changes nothing, 1 takes over the whole deviation.

  Reference: Lin et al. 2023, eq. 15 and 16 (https://arxiv.org/abs/2305.08891).
  """
  axes = (-3, -2, -1)
  wanted = jnp.std(conditional, axis=axes, keepdims=True)
  has = jnp.std(guided, axis=axes, keepdims=True)
  return guided * (amount * (wanted / has) + (1.0 - amount))


def guided(
  model: Callable[..., jax.Array],
  conditional: Any,
  unconditional: Any,
  *,
  scale: Scalar,
  rescaled: Scalar = 0.0,
) -> Predict:
  """A `Predict` that asks the model for both at once.

  Args:
    model: (latents, timesteps [rows], conditioning) to predictions.
    conditional: a pytree whose leaves have one entry an image.
    unconditional: the same for the negative prompt.
    scale: of `guide`.
    rescaled: the amount of `rescale`.
  """
  # Both rows of an image stand side by side, so that they are on its device.
  both = jax.tree.map(_interleave, unconditional, conditional)

  def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
    rows = _interleave(latents, latents)
    timesteps = jnp.full(len(rows), timestep, jnp.float32)
    output = model(rows, timesteps, both).astype(jnp.float32)
    without, prompted = output[0::2], output[1::2]
    return rescale(guide(without, prompted, scale), prompted, rescaled)

  return predict


def unguided(model: Callable[..., jax.Array], conditional: Any) -> Predict:
  """A `Predict` of the prompt alone, at half the work."""

  def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
    timesteps = jnp.full(len(latents), timestep, jnp.float32)
    return model(latents, timesteps, conditional).astype(jnp.float32)

  return predict


def _interleave(first: jax.Array, second: jax.Array) -> jax.Array:
  pairs = jnp.stack([first, second], axis=1)
  return pairs.reshape(2 * len(first), *first.shape[1:])
