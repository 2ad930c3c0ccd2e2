"""DDIM inversion and ReNoise: diffusers, SmPO's numbers, and there and back."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpref.errors import UserError
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.sample.denoise import denoise
from jaxpref.sample.invert import (
  ddim_inverse,
  ddim_inverse_from,
  implied_noise,
  renoise,
)
from jaxpref.sample.samplers import ddim

LATENTS = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
MIX = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32) / 8


def predict(x, t):
  return jnp.tanh(x @ MIX + t / 2000.0)


@functools.partial(jax.jit, static_argnames=("prediction", "weights"))
def invert(steps, latents, prediction="epsilon", weights=(1.0,)):
  return renoise(
    predict, steps, latents, prediction=prediction, weights=weights
  )


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_inversion_is_that_of_diffusers(prediction, spacing):
  config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": spacing,
    "prediction_type": prediction,
  }
  theirs = diffusers.DDIMInverseScheduler(clip_sample=False, **config)
  theirs.set_timesteps(20)
  x = torch.tensor(LATENTS)
  for t in theirs.timesteps:
    output = torch.tanh(x @ torch.tensor(MIX) + t / 2000.0)
    x = theirs.step(output, t, x).prev_sample
  x = x.numpy()
  steps = ddim_inverse(Scheduler(**config), 20)
  # Float32 on both sides: 4e-6.
  np.testing.assert_allclose(invert(steps, LATENTS, prediction), x, atol=1e-4)
  wrong = ddim_inverse_from(Scheduler(**config), 20)
  assert np.abs(invert(wrong, LATENTS, prediction) - x).max() > 1e-3


def test_sampling_from_the_inverted_latents_gives_them_back():
  """The closer, the better the noise of each step is known."""
  scheduler = Scheduler()
  up, down = ddim_inverse(scheduler, 20), ddim(scheduler, 20)
  back = jax.jit(
    lambda noise: denoise(predict, down.steps, noise, prediction="epsilon")
  )
  error = [
    np.abs(back(invert(up, LATENTS, weights=weights)) - LATENTS).max()
    for weights in ((1.0,), (0.0, 1.0), (0.0,) * 9 + (1.0,))
  ]
  assert error[0] > 3 * error[1] > 9 * error[2]
  # Twenty steps of float32, whose noise is divided by an alpha of 0.07.
  assert error[2] < 1e-4


def test_one_step_of_smpo():
  """x = 1 at ᾱ = 0.9, to 0.6, by a model that predicts x / 2."""
  steps = ddim_inverse_from(Scheduler(), 5)
  one = steps._replace(
    **{
      name: np.float32([value])
      for name, value in (
        ("alpha", 0.9**0.5),
        ("sigma", 0.1**0.5),
        ("to_latent", 0.6**0.5),
        ("to_noise", 0.4**0.5),
        ("timestep", 0.0),
        ("std", 0.0),
        ("extrapolate", 0.0),
        ("skip", 0.0),
      )
    }
  )
  half = lambda x, t: 0.5 * x
  x = jnp.ones((1, 1, 1, 1))
  for weights, expected in (
    ((1.0,), 1.0036249021),
    ((0.5, 0.5), 1.0039640630),
  ):
    found = renoise(half, one, x, prediction="epsilon", weights=weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  level = jnp.sqrt(jnp.array([0.6])), jnp.sqrt(jnp.array([0.4]))
  noise = implied_noise(found, x, *level)
  np.testing.assert_allclose(noise, 0.3626616926, rtol=1e-5)


def test_a_run_of_smpo_up_to_each_images_timestep():
  steps = ddim_inverse_from(Scheduler(), 5)
  np.testing.assert_array_equal(steps.timestep, [-199, 1, 201, 401, 601])
  half = lambda x, t: 0.5 * x
  until = jnp.array([0, 150, 1, 1000])
  found = renoise(
    half,
    steps,
    jnp.ones((4, 1, 1, 1)),
    prediction="epsilon",
    until=until,
  ).ravel()
  np.testing.assert_allclose(
    found[:3], [1.0056581255, 1.1167321912, 1.0056581255], rtol=1e-6
  )
  assert abs(found[3] - found[1]) > 0.1
  alpha_bar = Scheduler().alpha_bar()[150]
  level = (jnp.full(4, x**0.5, jnp.float32) for x in (alpha_bar, 1 - alpha_bar))
  latents = [jnp.reshape(x, (4, 1, 1, 1)) for x in (found, jnp.ones(4))]
  noise = implied_noise(*latents, *level).ravel()
  np.testing.assert_allclose(noise[1], 0.4985847113, rtol=1e-5)


def test_linspace_has_no_inverse():
  with pytest.raises(UserError, match="linspace"):
    ddim_inverse(Scheduler(timestep_spacing="linspace"), 10)
