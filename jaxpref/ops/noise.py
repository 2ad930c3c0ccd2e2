"""The noise process: a noisy latent is alpha latent + sigma noise.

Diffusion models keep the variance, alpha² + sigma² = 1; flow models go along a
line, alpha + sigma = 1. All else is the same for both, and each function takes
the two numbers of a level: one pair for each latent, or one for all.

What a model predicts ("epsilon", "v_prediction", "sample" or "flow") is said by
the names of diffusers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key

from jaxpref.types import Scalar, check_choice, checked

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")

Latents = Float32[Array, "*latents y x c"]
Level = Float32[Array, "*#latents"]


@checked
def add_noise(
  latent: Latents, noise: Latents, alpha: Level, sigma: Level
) -> Latents:
  """alpha latent + sigma noise.

  Reference: Ho et al. 2020, eq. 4 (https://arxiv.org/abs/2006.11239).
  """
  return _each(alpha, latent) * latent + _each(sigma, latent) * noise


@checked
def level_at(
  timestep: Int32[Array, "*latents"], alpha_bar: Float32[Array, " timesteps"]
) -> tuple[Float32[Array, "*latents"], Float32[Array, "*latents"]]:
  """alpha and sigma of a diffusion model's timesteps."""
  power = alpha_bar[timestep]
  return jnp.sqrt(power), jnp.sqrt(1.0 - power)


@checked
def snr(
  alpha: Float32[Array, "*latents"], sigma: Float32[Array, "*latents"]
) -> Float32[Array, "*latents"]:
  """Signal-to-noise ratio alpha² / sigma², of powers; 0 is noise alone."""
  return (alpha / sigma) ** 2


@checked
def target(
  prediction: str, latent: Latents, noise: Latents, alpha: Level, sigma: Level
) -> Latents:
  """What a perfect model would predict of alpha latent + sigma noise.

      epsilon       noise
      v_prediction  alpha noise - sigma latent
      sample        latent
      flow          noise - latent

  Reference: Salimans and Ho 2022, section 4 (https://arxiv.org/abs/2202.00512)
  for the first three; Liu et al. 2022 (https://arxiv.org/abs/2209.03003).
  """
  check_choice("prediction", prediction, *PREDICTIONS)
  if prediction == "epsilon":
    return noise
  if prediction == "sample":
    return latent
  if prediction == "flow":
    return noise - latent
  return _each(alpha, latent) * noise - _each(sigma, latent) * latent


@checked
def separate(
  prediction: str, output: Latents, noisy: Latents, alpha: Level, sigma: Level
) -> tuple[Latents, Latents]:
  """The latent and the noise that a prediction takes a noisy latent for.

  The inverse of `target`: of a perfect output it gives both back. Converting
  one kind of prediction into another is `target` of what this returns.

  Where alpha is 0, "epsilon" says nothing of the latent, and where sigma is 0,
  "sample" says nothing of the noise: the result is not finite.
  """
  check_choice("prediction", prediction, *PREDICTIONS)
  alpha, sigma = _each(alpha, noisy), _each(sigma, noisy)
  if prediction == "epsilon":
    return (noisy - sigma * output) / alpha, output
  if prediction == "sample":
    return output, (noisy - alpha * output) / sigma
  if prediction == "flow":
    total = alpha + sigma  # 1, but for rounding
    latent = (noisy - sigma * output) / total
    return latent, (noisy + alpha * output) / total
  return alpha * noisy - sigma * output, alpha * output + sigma * noisy


@checked
def draw_timesteps(
  keys: Key[Array, "*latents"], allowed: Sequence[int]
) -> Int32[Array, "*latents"]:
  """One of the allowed timesteps for each key, all equally likely.

  `range(1000)` is what most training does; SDXL's refiner takes `range(200)`,
  and SDXL-Turbo (249, 499, 749, 999). A pair or group that shares its timestep
  shares its key.
  """
  choose = lambda key: jax.random.randint(key, (), 0, len(allowed))
  chosen = jnp.vectorize(choose, signature="()->()")(keys)
  return jnp.asarray(list(allowed), jnp.int32)[chosen]


@checked
def draw_flow_times(
  keys: Key[Array, "*latents"],
  *,
  mean: Scalar = 0.0,
  std: Scalar = 1.0,
  shift: Scalar = 1.0,
) -> Float32[Array, "*latents"]:
  """Times between 0, the image, and 1, noise: most of them in the middle.

      t = σ(mean + std z), shifted to shift t / (1 + (shift - 1) t)

  Reference: Esser et al. 2024, eq. 19 (https://arxiv.org/abs/2403.03206).
  """
  normal = jnp.vectorize(jax.random.normal, signature="()->()")(keys)
  time = jax.nn.sigmoid(mean + std * normal)
  return shift * time / (1.0 + (shift - 1.0) * time)


def _each(value: jax.Array, latents: jax.Array) -> jax.Array:
  """One number a latent, spread over its rows, columns and channels."""
  missing = latents.ndim - value.ndim if value.ndim else 0
  return value.reshape(value.shape + (1,) * missing)
