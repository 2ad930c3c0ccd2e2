"""Metrics against sums written out in NumPy."""

import doctest
import inspect

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

RNG = np.random.default_rng(0)


def _f32(x):
  return jnp.asarray(x, jnp.float32)


def _close(ours, theirs, rtol=1e-5, **kwargs):
  np.testing.assert_allclose(ours, theirs, rtol=rtol, **kwargs)


def _planted(x, valid):
  return jnp.where(valid, x, jnp.nan)


def test_rewards_of_two_known_pairs():
  """Log-ratios .3, -.2 and -2.4, 1.5, as two pairs of responses."""
  chosen = losses.implicit_reward(_f32([0.3, -0.2]), beta=0.1)
  rejected = losses.implicit_reward(_f32([-2.4, 1.5]), beta=0.1)
  _close(chosen, [0.03, -0.02])
  margin = losses.reward_margin(chosen, rejected)
  _close(margin, [0.27, -0.17])
  _close(
    -jax.nn.log_sigmoid(margin),
    losses.dpo(_f32([0.3, -0.2]), _f32([-2.4, 1.5]), beta=0.1),
  )


def test_a_tie_is_not_accurate_and_is_reported_apart():
  chosen = _f32([1.0, 0.5, 0.0, -1.0, 0.5])
  rejected = _f32([0.0, 0.5, 1e-7, -2.0, np.nextafter(np.float32(0.5), 1)])
  accurate = losses.reward_accuracy(chosen, rejected)
  tied = losses.reward_tie(chosen, rejected)
  np.testing.assert_array_equal(accurate, [1, 0, 0, 1, 0])
  np.testing.assert_array_equal(tied, [0, 1, 0, 0, 0])
  swapped = losses.reward_accuracy(rejected, chosen)
  np.testing.assert_array_equal(accurate + tied + swapped, np.ones(5))
  assert accurate.dtype == tied.dtype == jnp.float32


def test_sequence_kl_of_two_known_sequences():
  logp = np.array([[-0.5, -1.2, -0.3], [-1.5, -0.7, -2.0]])
  ref = np.array([[-0.7, -1.0, -0.6], [-1.0, -0.4, -0.9]])
  mask = np.array([[True, True, True], [True, False, True]])
  d = logp - ref
  expected = np.where(mask, np.exp(-d) - 1 + d, 0).sum(axis=1)
  ours = losses.sequence_kl(_f32(logp), _f32(ref), jnp.asarray(mask))
  _close(ours, expected)
  dirty = [_planted(_f32(x), mask) for x in (logp, ref)]
  _close(losses.sequence_kl(*dirty, jnp.asarray(mask)), expected)


def test_sequence_kl_estimates_the_divergence():
  """Of two coins thrown thrice, with less noise than the mean log-ratio."""
  p, q = np.array([0.8, 0.2]), np.array([0.6, 0.4])
  exact = 3 * np.sum(p * np.log(p / q))
  thrown = (RNG.uniform(size=(4000, 3)) > 0.8).astype(int)
  pair = [_f32(np.log(x)[thrown]) for x in (p, q)]
  estimates = losses.sequence_kl(*pair, jnp.ones((4000, 3), bool))
  assert (estimates >= 0).all()
  plain = jnp.sum(pair[0] - pair[1], axis=1)
  error = jnp.std(estimates) / np.sqrt(4000)
  assert abs(jnp.mean(estimates) - exact) < 4 * error
  assert jnp.std(estimates) < 0.5 * jnp.std(plain)


def test_brier_score():
  scores = losses.brier_score(_f32([0.8, 0.5, 0.3]), _f32([1.0, 0.0, 0.5]))
  _close(scores, [0.04, 0.25, 0.04])
  swapped = losses.brier_score(_f32([0.2, 0.5, 0.7]), _f32([0.0, 1.0, 0.5]))
  _close(scores, swapped)


def _by_hand(probability, preference, bins):
  """Loops over bins that are open on the left, except for the first one."""
  edges = np.linspace(0.5, 1.0, bins + 1)
  sums = np.zeros((3, bins))
  for p, y in zip(probability, preference, strict=True):
    confidence = max(p, 1 - p)
    right = 0.5 if p == 0.5 else y if p > 0.5 else 1 - y
    k = next(
      i for i in range(bins) if confidence <= edges[i + 1] or i == bins - 1
    )
    sums[:, k] += 1, confidence, right
  return sums


def _pairs(seed=0, count=400):
  rng = np.random.default_rng(seed)
  # Odd 256ths, which never fall on an edge of 10 bins; and some of exactly ½.
  p = (2 * rng.integers(0, 128, count) + 1) / 256
  p[:20] = 0.5
  return p, rng.choice([0, 0.5, 1, 0.25], count)


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_calibration_in_numpy(bins):
  p, y = _pairs()
  valid = np.arange(len(p)) % 3 != 1
  expected = _by_hand(p[valid], y[valid], bins)
  given = [_planted(_f32(x), valid) for x in (p, y)]
  ours = losses.calibration(*given, jnp.asarray(valid), bins=bins)
  _close(np.array(ours), expected)
  error = losses.calibration_error(*given, jnp.asarray(valid), bins=bins)
  gaps = np.abs(expected[1] - expected[2]).sum() / valid.sum()
  _close(error, gaps)


def test_sums_of_two_batches_add():
  p, y = map(_f32, _pairs())
  valid = jnp.ones(p.shape, bool)
  whole = losses.calibration(p, y, valid)
  halves = [
    losses.calibration(p[part], y[part], valid[part])
    for part in (slice(150), slice(150, None))
  ]
  _close(np.array(whole), np.array(halves[0]) + np.array(halves[1]))


def test_edges_belong_to_the_bin_below():
  p = _f32([0.5, 0.75, 0.25, 1.0, 0.0])
  ours = losses.calibration(p, jnp.ones(5), jnp.ones(5, bool), bins=2)
  np.testing.assert_array_equal(ours.count, [3, 2])


_error = jax.jit(losses.calibration_error)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
  st.lists(
    st.tuples(st.integers(0, 256), st.sampled_from([0, 0.5, 1])),
    min_size=8,
    max_size=8,
  )
)
def test_which_stands_first_does_not_change_calibration(pairs):
  p, y = (_f32(x) for x in zip(*pairs, strict=True))
  p = p / 256
  valid = jnp.ones(8, bool)
  error = _error(p, y, valid)
  _close(_error(1 - p, 1 - y, valid), error, atol=1e-6)
  assert 0 <= error <= 1


def test_calibrated_predictions_have_little_error():
  p = RNG.uniform(size=20000)
  y = (RNG.uniform(size=p.shape) < p).astype(np.float32)
  valid = jnp.ones(p.shape, bool)
  # 10 bins of 2,000 labels: 0.01 each of noise.
  assert losses.calibration_error(_f32(p), _f32(y), valid) < 0.02
  sure = p**3 / (p**3 + (1 - p) ** 3)
  assert losses.calibration_error(_f32(sure), _f32(y), valid) > 0.1


def test_nothing_valid_has_no_error():
  nothing = jnp.zeros((2, 3), bool)
  x = jnp.full((2, 3), jnp.nan)
  ours = losses.calibration_error(x, x, nothing)
  np.testing.assert_array_equal(ours, np.zeros(2))


METRICS = [
  losses.implicit_reward,
  losses.reward_margin,
  losses.reward_accuracy,
  losses.reward_tie,
  losses.sequence_kl,
  losses.brier_score,
  losses.calibration,
  losses.calibration_error,
]


@pytest.mark.parametrize("function", METRICS, ids=lambda f: f.__name__)
def test_examples_in_docstrings_run(function):
  finder = doctest.DocTestFinder(recurse=False)
  names = {"jnp": jnp, function.__name__: function}
  (test,) = finder.find(inspect.unwrap(function), "example", globs=names)
  result = doctest.DocTestRunner().run(test)
  assert result.attempted > 0
  assert not result.failed
