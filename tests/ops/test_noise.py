"""The noise process: diffusers' numbers, and there and back."""

import itertools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpref.ops import noise, schedules

SHAPE = (3, 2, 2, 4)
LATENT, NOISE = (
  jnp.asarray(x, jnp.float32)
  for x in np.random.default_rng(0).normal(size=(2, *SHAPE))
)
TIMESTEP = jnp.array([0, 400, 999])
ALPHA_BAR = schedules.alpha_bar_of(
  schedules.scaled_linear_betas(0.00085, 0.012, 1000)
)
VP = noise.level_at(TIMESTEP, jnp.asarray(ALPHA_BAR, jnp.float32))
FLOW = jnp.array([0.9, 0.5, 0.2]), jnp.array([0.1, 0.5, 0.8])


def test_adding_noise_and_velocity_are_those_of_diffusers():
  theirs = diffusers.DDPMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
  )
  given = (torch.tensor(np.array(x)) for x in (LATENT, NOISE, TIMESTEP))
  latent, fresh, timestep = given
  np.testing.assert_allclose(
    noise.add_noise(LATENT, NOISE, *VP),
    theirs.add_noise(latent, fresh, timestep),
    atol=1e-6,
  )
  np.testing.assert_allclose(
    noise.target("v_prediction", LATENT, NOISE, *VP),
    theirs.get_velocity(latent, fresh, timestep),
    atol=1e-6,
  )


# v is defined where alpha² + sigma² = 1, so not along a flow's line.
@pytest.mark.parametrize(
  ("prediction", "level"),
  [
    *itertools.product(noise.PREDICTIONS, [VP]),
    *itertools.product(["epsilon", "sample", "flow"], [FLOW]),
  ],
)
def test_a_perfect_prediction_gives_both_back(prediction, level):
  noisy = noise.add_noise(LATENT, NOISE, *level)
  output = noise.target(prediction, LATENT, NOISE, *level)
  found = noise.separate(prediction, output, noisy, *level)
  # Rounding of 1e-7, divided by an alpha of 0.07 or a sigma of 0.03.
  np.testing.assert_allclose(found[0], LATENT, atol=2e-5)
  np.testing.assert_allclose(found[1], NOISE, atol=2e-5)


def test_wrong_names():
  with pytest.raises(ValueError, match="'epsilon' or 'v_prediction'"):
    noise.target("noise", LATENT, NOISE, *VP)


def test_zero_terminal_snr():
  zero = schedules.with_zero_terminal_snr(ALPHA_BAR)
  # SDXL-Turbo's four timesteps.
  np.testing.assert_allclose(
    zero[[249, 499, 749, 999]], [0.654189, 0.242359, 0.0331715, 0.0], rtol=2e-6
  )
  assert zero[0] == ALPHA_BAR[0]
  last = noise.level_at(jnp.array([999]), jnp.asarray(zero, jnp.float32))
  np.testing.assert_array_equal(noise.snr(*last), [0.0])
  noisy = noise.add_noise(LATENT[:1], NOISE[:1], *last)
  np.testing.assert_array_equal(noisy, NOISE[:1])


def test_known_numbers_of_sdxls_schedule():
  np.testing.assert_allclose(
    ALPHA_BAR[[0, 1, 150, 201, 999]],
    [0.99915, 0.9982960278, 0.8278116322, 0.7521434016, 0.0046601],
    rtol=1e-5,
  )
  sigma = schedules.sigma_of(ALPHA_BAR)
  np.testing.assert_allclose(
    sigma[[999, 749, 499, 249]],
    [14.6146412, 4.0817294, 1.6128862, 0.6932049],
    rtol=1e-6,
  )


def test_timesteps_are_drawn_from_those_allowed():
  keys = jax.random.split(jax.random.key(0), 4000)
  turbo = noise.draw_timesteps(keys, (249, 499, 749, 999))
  values, counts = np.unique(turbo, return_counts=True)
  np.testing.assert_array_equal(values, [249, 499, 749, 999])
  assert counts.min() > 900  # 1000 expected; a sigma is 27
  assert np.unique(noise.draw_timesteps(keys, range(1000))).size > 950
  one = noise.draw_timesteps(keys[7], (249, 499, 749, 999))
  assert one == turbo[7]  # by its key, not by its place


def test_flow_times_are_logit_normal():
  keys = jax.random.split(jax.random.key(1), (100, 40))
  time = noise.draw_flow_times(keys, mean=0.5, std=0.8)
  assert time.shape == (100, 40)
  normal = np.log(time / (1 - time))
  np.testing.assert_allclose(
    [normal.mean(), normal.std()], [0.5, 0.8], atol=0.05
  )
  shifted = noise.draw_flow_times(keys, mean=0.5, std=0.8, shift=3.0)
  np.testing.assert_allclose(shifted, 3 * time / (1 + 2 * time), rtol=1e-5)
