"""How red an image is, and how often ratings rise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.config_checks import CHOICES
from jaxpref.score.raters import (
  RATERS,
  frechet_distance,
  preference_rate,
  redness,
  sharpness,
)


@pytest.mark.parametrize(
  ("color", "rate"),
  [
    ((255, 0, 0), 1.0),
    ((0, 255, 255), 0.0),
    ((255, 255, 255), 0.5),
    ((0, 0, 0), 0.5),
    ((0, 255, 0), 0.25),
    ((0, 0, 255), 0.25),
    ((255, 0, 255), 0.75),
  ],
)
def test_redness(color, rate):
  assert redness(np.full((4, 6, 3), color, np.uint8)) == pytest.approx(rate)


def test_redness_is_a_mean_over_pixels():
  pixels = np.full((2, 2, 3), 255, np.uint8)
  pixels[0, 0] = (255, 0, 0)
  assert redness(pixels) == pytest.approx(0.5 + 0.5 / 4)


def test_a_tie_counts_half():
  assert preference_rate([1.0, 2.0], [1.0, 2.0]) == 0.5
  assert preference_rate([2.0, 1.0, 3.0], [1.0, 2.0, 2.0]) == 2 / 3


def test_the_config_names_them():
  assert set(CHOICES["score.rater"]) == {"", *RATERS}


@pytest.mark.parametrize("name", RATERS)
def test_raters_rate_many_in_a_compiled_step(name):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (3, 8, 6, 3)).astype(np.uint8)
  one_by_one = [RATERS[name](each) for each in pixels]
  np.testing.assert_array_equal(RATERS[name](pixels), one_by_one)
  rates = jax.jit(RATERS[name])(jnp.asarray(pixels))
  assert rates.dtype == jnp.float32
  np.testing.assert_allclose(rates, one_by_one, rtol=1e-6)


def test_sharpness_falls_with_blur():
  """An edge of height 0.6, and the same over three pixels."""
  rows = np.array([[51, 51, 204, 204, 204], [51, 102, 153, 204, 204]])
  pixels = np.tile(rows[:, None, :, None], (1, 4, 1, 3)).astype(np.uint8)
  np.testing.assert_allclose(sharpness(pixels), [0.6, 0.2])
  assert sharpness(np.full((4, 4, 3), 9, np.uint8)) == 0.0


def test_frechet_distance_of_known_gaussians():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(500, 3))
  x = (x - x.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)
  # Of unit covariance: then (2 I, mean 1) is 3 + 3 (sqrt 2 - 1)² away.
  other = 2**0.5 * x + 1.0
  expected = 3.0 + 3.0 * (2**0.5 - 1.0) ** 2
  assert frechet_distance(x, other) == pytest.approx(expected)
  assert frechet_distance(other, x) == pytest.approx(expected)
  assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
