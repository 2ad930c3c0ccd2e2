"""Scales of advantages by difficulty, against known numbers."""

import jax.numpy as jnp
import numpy as np

from jaxpref import losses

from .samples import assert_examples_run, close

GAP = jnp.array([0.8, 0.5, -0.1, 3.0])
ALL = jnp.ones(4, bool)


def test_examples_in_docstrings_run():
  assert_examples_run(
    losses.sentence_match, losses.data_hardness, losses.model_responsiveness
  )


def test_likeness_of_known_sentences():
  """Two sentences with two shown, and one with two: the rest is missing."""
  similarity = jnp.array([[[0.9, 0.2], [0.5, 0.8]], [[0.3, 0.4], [9.0, 9.0]]])
  valid = jnp.array([[[True, True], [True, True]], [[True, True], [False] * 2]])
  likeness = losses.sentence_match(similarity, valid)
  close(likeness, [0.85, 0.40])
  hardness = losses.data_hardness(likeness, jnp.ones(2, bool))
  close(hardness, [0.906799616, 1.089408963])
  alpha = hardness * losses.model_responsiveness(GAP, ALL, threshold=2.0)
  close(alpha, [0.732867354, 0.880450598])


def test_responsiveness_of_known_gaps():
  ours = losses.model_responsiveness(GAP, ALL, threshold=2.0)
  close(ours, 0.808191072)


def test_no_sentence_is_no_likeness():
  nothing = jnp.full((2, 3), jnp.nan)
  close(losses.sentence_match(nothing, jnp.zeros((2, 3), bool)), 0.0)


def test_what_is_missing_does_not_matter():
  valid = jnp.array([[True, True, False], [True, False, False]])
  likeness = jnp.where(valid, 0.5, jnp.nan)
  ours = losses.data_hardness(likeness, valid)
  close(ours, jnp.where(valid, 1.0, 0.0))
  gap = jnp.array([0.8, 0.5, -0.1, 3.0, jnp.nan])
  ours = losses.model_responsiveness(gap, ~jnp.isnan(gap), threshold=2.0)
  close(ours, 0.808191072)


def test_all_or_none_kept():
  close(losses.model_responsiveness(GAP, ALL, threshold=100), 1.0)
  # The mean is 1.05: no gap is as near as that.
  close(losses.model_responsiveness(GAP, ALL, threshold=1e-6), 1.0)
  far = jnp.array([-1e4, -1e4, -9e3])
  assert np.isfinite(losses.model_responsiveness(far, ALL[:3], threshold=1e9))


def test_hardness_stays_in_its_band():
  """For likeness from 0 to 1: σ(0) / σ(1) and back."""
  likeness = jnp.array([1.0] + [0.0] * 999)
  hardness = losses.data_hardness(likeness, jnp.ones(1000, bool))
  close(hardness[0], 0.684, atol=1e-3)
  rest = losses.data_hardness(1 - likeness, jnp.ones(1000, bool))
  close(rest[0], 1.462, atol=1e-3)
