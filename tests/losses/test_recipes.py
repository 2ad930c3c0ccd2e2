"""Papers whose objective is a loss of the library with other inputs."""

import jax.numpy as jnp
import numpy as np

from jaxpref import losses


def _f32(x):
  return jnp.asarray(x, jnp.float32)


def _latents(rows):
  return _f32(rows)[..., None, :, None]


def _close(ours, theirs):
  # Measured: 2e-7.
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_curry_dpo_is_dpo_against_the_stage_before():
  """Its second stage, and what a reference that was not refreshed would say."""
  policy, refreshed, stale = (-9.5, -11.2), (-10.2, -11.0), (-11.0, -11.3)
  for old, expected in [(refreshed, 0.649159339), (stale, 0.625595182)]:
    chosen, rejected = (_f32([a - b]) for a, b in zip(policy, old, strict=True))
    _close(losses.dpo(chosen, rejected, beta=0.1), [expected])
  _close(losses.dpo(_f32([1.0]), _f32([-0.5]), beta=0.1), [0.620957048])


def test_upo_is_dpo_of_soft_labels():
  """α of each pair from a classifier's disagreement with itself."""
  margin = _f32([1.2, -0.5, 0.4])
  zero = jnp.zeros(3)
  bald = _f32([0.015092729, 0.194099860, 0.006287540])
  ours = losses.dpo_soft(margin, zero, 1 - bald / (2 * np.log(2)), beta=0.1)
  _close(ours, [0.636252554, 0.711458975, 0.673528587])
  # The weights as the paper prints them are all above a half: backwards.
  printed = _f32([0.738711684, 0.775541542, 0.736990113])
  ours = losses.dpo_soft(margin, zero, 1 - printed, beta=0.1)
  _close(ours, [0.723591504, 0.679682571, 0.702826772])
  # Its NLL a token of the chosen response, by a weight of 1.
  mean_logp = _f32([-6 / 6, -9 / 9, -4 / 5])
  ours = losses.dpo_soft(margin, zero, 1 - bald / (2 * np.log(2)), beta=0.1)
  _close(jnp.mean(ours - mean_logp), 1.607080039)


def test_hybrid_preferences_of_videos_are_dpo_of_sums():
  """Sums over three elements: beta is multiplied by them, and by two."""
  chosen = losses.denoising_logratio(
    _latents([[0.1, 0, 0.3]]),
    _latents([[0.5, -0.4, 0.1]]),
    _latents([[0.2, -0.1, 0.4]]),
  )
  rejected = losses.denoising_logratio(
    _latents([[0.1, 0.2, 0.1]]),
    _latents([[-0.2, 0.5, 0.2]]),
    _latents([[-0.3, 0.6, 0]]),
  )
  _close(2 * 3 * chosen, [0.24])
  _close(2 * 3 * rejected, [-0.27])
  for beta, full, half in [
    (1, 0.4703133180, 0.5737533784),
    (5, 0.0751832266, 0.2464154230),
  ]:
    _close(losses.dpo(chosen, rejected, beta=2 * 3 * beta), [full])
    _close(losses.dpo(chosen, rejected, beta=3 * beta), [half])
