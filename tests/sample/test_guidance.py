"""Guidance in one call, its rescaling, and keys by image."""

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (  # noqa: E501
  rescale_noise_cfg,
)
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpref.sample.denoise import draws, image_keys
from jaxpref.sample.guidance import guide, guided, rescale, unguided

RANDOM = np.random.default_rng(0)
X, PROMPT, EMPTY = (
  jnp.asarray(RANDOM.normal(size=(3, 2, 2, 4)), jnp.float32) for _ in range(3)
)


def model(latents, timesteps, conditioning):
  shift = timesteps[:, None, None, None] / 1000.0
  return (latents * conditioning["text"] + shift).astype(jnp.bfloat16)


@pytest.mark.parametrize("amount", [0.0, 0.7])
def test_rescaling_is_that_of_diffusers(amount):
  ours = rescale(guide(EMPTY, PROMPT, 5.0), PROMPT, amount)
  prompt, empty = (torch.tensor(np.array(x)) for x in (PROMPT, EMPTY))
  theirs = rescale_noise_cfg(empty + 5.0 * (prompt - empty), prompt, amount)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_call_gives_what_two_would():
  calls = []

  def counted(*given):
    calls.append(given)
    return model(*given)

  timestep = jnp.float32(500.0)
  predict = guided(counted, {"text": PROMPT}, {"text": EMPTY}, scale=3.0)
  together = predict(X, timestep)
  assert [len(given[0]) for given in calls] == [6]
  apart = [
    unguided(model, {"text": text})(X, timestep) for text in (EMPTY, PROMPT)
  ]
  np.testing.assert_array_equal(together, guide(*apart, 3.0))
  assert together.dtype == jnp.float32
  np.testing.assert_array_equal(guide(*apart, 1.0), apart[1])


def test_noise_depends_on_seed_and_image_alone():
  shape = (4, 4, 4)
  start, draw = draws(image_keys(7, jnp.arange(6)), shape)
  moved, draw_moved = draws(image_keys(7, jnp.array([5, 2])), shape)
  np.testing.assert_array_equal(moved, start[jnp.array([5, 2])])
  np.testing.assert_array_equal(draw_moved(3), draw(3)[jnp.array([5, 2])])
  different = [
    start,
    draw(0),
    draw(1),
    draws(image_keys(8, jnp.arange(6)), shape)[0],
  ]
  flat = np.array([np.asarray(x).ravel() for x in different])
  assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.25
  assert np.unique(np.asarray(start)).size > 0.99 * start.size
