"""Trains a small autoencoder from nothing, as an ingredient of simulations.

Images are reconstructed and nothing more: no critic, no perceptual loss. That
is enough for simple drawings.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8
import numpy as np
import optax

from jaxpref.models.build import Definition, bind, define
from jaxpref.models.sdxl.small import init_small
from jaxpref.types import Params

_KL = 1e-4  # weight of an element's divergence beside the squared error


def train_autoencoder(
  definition: Definition,
  pixels: UInt8[np.ndarray, "images Y X 3"],
  *,
  steps: int,
  batch_size: int = 32,
  learning_rate: float = 3e-3,
  seed: int = 0,
) -> tuple[Definition, Params]:
  """Fits random weights to images, on one device.

      loss = mean (decode(z) - pixels)² + 1e-4 mean KL(q(z | pixels), N(0, 1))

  Args:
    definition: of an AutoencoderKL, in float32.
    pixels: what it learns; each step draws some of them.
    steps: of Adam, whose rate falls to zero as a cosine.
    batch_size: images a step.
    learning_rate: the first.
    seed: of the weights and of what is drawn.

  Returns: the definition with the `scaling_factor` that gives latents unit
  variance, and its weights.

  Reference: Kingma & Welling 2013 (https://arxiv.org/abs/1312.6114).
  """
  params = init_small(definition, seed)
  key = jax.random.key(seed)
  tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
  state = jax.jit(tx.init)(params)

  def loss(params: Params, batch: Array, key: Any) -> Array:
    autoencoder = bind(definition, params)
    moments = autoencoder.encode(batch)
    noise = jax.random.normal(key, moments.mean.shape)
    latents = moments.mean + jnp.exp(0.5 * moments.logvar) * noise
    error = jnp.mean((autoencoder.decode(latents) - batch) ** 2)
    variance = jnp.exp(moments.logvar)
    divergence = moments.mean**2 + variance - 1.0 - moments.logvar
    return error + _KL * 0.5 * jnp.mean(divergence)

  @jax.jit
  def step(params: Params, state: Any, batch: Array, key: Any) -> Any:
    grads = jax.grad(loss)(params, _scaled(batch), key)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state

  rng = np.random.default_rng(seed)
  for number in range(steps):
    batch = pixels[rng.integers(len(pixels), size=batch_size)]
    params, state = step(params, state, batch, jax.random.fold_in(key, number))
  spread = _latent_std(definition, params, pixels[:256])
  config = dataclasses.replace(definition.config, scaling_factor=1.0 / spread)
  return define(config, dtype="float32", remat=""), params


def _scaled(pixels: Array) -> Array:
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def _latent_std(
  definition: Definition, params: Params, pixels: np.ndarray
) -> float:
  """Of all elements together, as Rombach et al. 2022 measure it."""
  encode = jax.jit(lambda p, x: bind(definition, p).encode(_scaled(x)).mean)
  return float(np.std(np.asarray(encode(params, pixels))))
