"""Margin-aware preference optimization, a reference-free diffusion loss.

The released code and the later paper give the same shape other constants, and
no value of one's hyper-parameters makes it the other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar


@loss("pair")
def mapo(
  chosen_error: Float32[Array, "*pairs"],
  rejected_error: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  snr: Scalar = 0.5,
  scale: Scalar = 1000.0,
) -> Float32[Array, "*pairs"]:
  """Margin-aware preference loss of each pair of images, as its code has it.

      loss = chosen - beta log σ(scale (g(snr chosen) - g(snr rejected)))
      g(x) = x / (exp(x) - 1)

  Use: to align a diffusion model without a reference in memory, or far from
  what the reference draws. Near a tie its margin pulls twelve times as hard as
  its denoising term, and is spent where the errors differ by 0.02.

  Args:
    chosen_error: squared error of the model's prediction of the preferred
      image's noise (or velocity), averaged over channels and pixels.
    rejected_error: the same for the other image, at the same time step and
      with the same noise.
    beta: weight of the margin against the denoising loss.
    snr: a constant signal-to-noise ratio, which scales the errors.
    scale: of the margin: the number of diffusion steps.

  Returns: one loss per pair; chosen + beta log 2 where the errors are equal.

  Reference: Hong, Paul et al. 2024 (https://arxiv.org/abs/2406.06424) in the
  code its authors released (https://github.com/mapo-t2i/mapo), which takes
  exp(x) - 1 in float32: 0 / 0 where an error is 0, and margins off by up to
  0.3 where errors are about 0.001. Here g is exact there too.

  >>> f"{mapo(jnp.array([0.1]), jnp.array([0.12]))[0]:.4f}"
  '0.1007'
  """
  gain = _link(snr * chosen_error) - _link(snr * rejected_error)
  return chosen_error - beta * jax.nn.log_sigmoid(scale * gain)


@loss("pair")
def mapo_paper(
  chosen_error: Float32[Array, "*pairs"],
  rejected_error: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 8.0,
) -> Float32[Array, "*pairs"]:
  """Margin-aware preference loss of each pair of images, as its paper has it.

      loss = chosen - 1/beta · log σ(beta (g(chosen) - g(rejected)))
      g(x) = x / (exp(x) - 1)

  Use: like `mapo`, where the denoising loss of the preferred image shall lead:
  near a tie it pulls four times as hard as the margin.

  Args:
    chosen_error: squared error of the model's prediction of the preferred
      image's noise (or velocity), averaged over channels and pixels.
    rejected_error: the same for the other image, at the same time step and
      with the same noise.
    beta: scale of the margin; 8 for general preferences in the paper, and
      more, up to 1024, the farther the data lies from what the model draws.

  Returns: one loss per pair; chosen + log 2 / beta where the errors are equal.

  Reference: Hong, Paul et al. 2024, later version of 2026
  (https://arxiv.org/abs/2406.06424).

  >>> f"{mapo_paper(jnp.array([0.1]), jnp.array([0.12]))[0]:.4f}"
  '0.1819'
  """
  gain = _link(chosen_error) - _link(rejected_error)
  return chosen_error - jax.nn.log_sigmoid(beta * gain) / beta


def _link(x: Array) -> Array:
  """x / (exp(x) - 1) - 1: less 1, to keep the digits in which two differ."""
  small = jnp.abs(x) < 1.0
  # Its series; the next term is 2e-8 of x**10.
  u = jnp.where(small, x, 0.0)
  terms = (-1 / 1209600, 1 / 30240, -1 / 720, 1 / 12)
  series = jnp.zeros_like(u)
  for term in terms:
    series = (series + term) * u * u
  # By exp(-x) for x above 0 and by exp(x) below, of which neither overflows.
  v = jnp.where(small, 1.0, x)
  direct = jnp.abs(v) / -jnp.expm1(-jnp.abs(v))
  direct = jnp.where(v > 0, direct * jnp.exp(-jnp.abs(v)), direct)
  return jnp.where(small, series - u / 2, direct - 1.0)
