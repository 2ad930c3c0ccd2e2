"""Metrics of orders against SciPy, and against every order written out."""

import doctest
import inspect
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxpref import losses


def _f32(x):
  return jnp.asarray(x, jnp.float32)


def _close(ours, theirs, rtol=1e-5, **kwargs):
  np.testing.assert_allclose(ours, theirs, rtol=rtol, **kwargs)


def _lists(seed=0, lists=12, items=7):
  """Values and scores with ties, and NaN in padding."""
  rng = np.random.default_rng(seed)
  values = rng.integers(-3, 4, size=(lists, items)) / 2
  scores = rng.integers(0, 4, size=(lists, items)).astype(float)
  lengths = rng.integers(2, items + 1, size=(lists, 1))
  valid = np.arange(items) < lengths
  given = [_f32(np.where(valid, x, np.nan)) for x in (values, scores)]
  return values, scores, valid, (*given, jnp.asarray(valid))


def test_kendall_tau_of_scipy():
  values, scores, valid, given = _lists()
  ours = losses.kendall_tau(*given)
  theirs = [
    scipy.stats.kendalltau(v[k], s[k]).statistic
    for v, s, k in zip(values, scores, valid, strict=True)
  ]
  assert np.isnan(theirs).any()  # all tied: we say 0
  _close(ours, np.nan_to_num(theirs), atol=1e-6)


def _expected_gain(by, gains):
  """The mean over all orders that sort `by` downwards, however ties fall."""
  total, count = 0.0, 0
  for order in itertools.permutations(range(len(by))):
    if all(by[a] >= by[b] for a, b in itertools.pairwise(order)):
      count += 1
      total += sum(gains[i] / np.log2(2 + rank) for rank, i in enumerate(order))
  return total / count


def test_ndcg_is_the_mean_over_all_orders_of_ties():
  values, scores, valid, given = _lists(seed=1, lists=8, items=5)
  ours = losses.ndcg(*given)
  for i, k in enumerate(valid):
    gains = 2 ** scores[i][k] - 1
    best = _expected_gain(scores[i][k], gains)
    expected = _expected_gain(values[i][k], gains) / best if best else 0.0
    _close(ours[i], expected)


def test_ndcg_of_a_known_list():
  """Gains 3, 1, 0 in the order 3, 0, 1: (3 + 1/2) / (3 + 1/log2 3)."""
  ours = losses.ndcg(
    _f32([[3.0, 1.0, 2.0]]), _f32([[2.0, 1.0, 0.0]]), jnp.ones((1, 3), bool)
  )
  _close(ours, [3.5 / (3 + 1 / np.log2(3))])


_METRICS = [jax.jit(losses.kendall_tau), jax.jit(losses.ndcg)]


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.permutations(range(5)))
def test_the_right_order_is_1_and_the_reverse_the_least(order):
  scores = _f32([order])
  valid = jnp.ones((1, 5), bool)
  tau, ndcg = _METRICS
  _close(tau(3 * scores + 1, scores, valid), [1], rtol=1e-6)
  _close(tau(-scores, scores, valid), [-1], rtol=1e-6)
  _close(ndcg(3 * scores + 1, scores, valid), [1], rtol=1e-6)
  worst = ndcg(-scores, scores, valid)
  for seed in range(3):
    values = np.random.default_rng(seed).normal(size=(1, 5))
    assert ndcg(_f32(values), scores, valid) >= worst - 1e-6


def test_no_gain_and_no_item_give_0():
  nothing = jnp.zeros((1, 3), bool)
  zeros, order = jnp.zeros((1, 3)), _f32([[1.0, 2.0, 3.0]])
  for metric in (losses.kendall_tau, losses.ndcg):
    np.testing.assert_array_equal(metric(order, zeros, ~nothing), [0])
    np.testing.assert_array_equal(metric(order, order, nothing), [0])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_values_stay_finite(size):
  x, valid = jnp.full((2, 3), size).at[:, 0].set(0.0), jnp.ones((2, 3), bool)
  for metric in (losses.kendall_tau, losses.ndcg):
    assert np.isfinite(metric(x, x, valid)).all()


HUMAN = np.tile([1.0, 0.0, 0.5], 3)  # first better, second better, tie
FIRST = np.array([0.9, -0.7, 0.1, 0.8, -0.6, 0.2, 0.7, -0.5, 0.3])
SECOND = np.array([0.1, -0.8, 0.5, 0.5, -0.3, 0.3, 0.4, -0.4, 0.4])


def test_tie_calibrated_accuracy_of_known_pairs():
  every = jnp.ones(9, bool)
  given = [_f32(x) for x in (FIRST, SECOND, HUMAN)]
  _close(losses.tie_calibrated_accuracy(*given, every), 2 / 3)
  # Without ties, it is the accuracy of signs.
  untied = jnp.asarray(HUMAN != 0.5)
  first, second, label = given
  ours = losses.tie_calibrated_accuracy(
    jnp.where(untied, first, jnp.nan), jnp.where(untied, second, jnp.nan),
    jnp.where(untied, label, jnp.nan), untied,
  )  # fmt: skip
  _close(
    ours, np.mean(np.sign(FIRST - SECOND)[untied] == 2 * HUMAN[untied] - 1)
  )


def test_no_threshold_makes_an_untied_pair_a_tie():
  one = jnp.ones(1)
  ours = losses.tie_calibrated_accuracy(one, -one, one, one > 0)
  np.testing.assert_array_equal(ours, 1.0)


def _best_of_all_thresholds(first, second, label):
  difference = first - second
  sign = np.sign(label - 0.5)
  thresholds = np.concatenate([[-1.0], np.abs(difference)])
  return max(
    np.mean(np.where(np.abs(difference) <= e, 0, np.sign(difference)) == sign)
    for e in thresholds
  )


@pytest.mark.parametrize("seed", range(4))
def test_tie_calibrated_accuracy_tries_all_thresholds(seed):
  rng = np.random.default_rng(seed)
  # Few different sizes, so that some are equal.
  first, second = rng.integers(-4, 5, size=(2, 6, 20)) / 4
  label = rng.choice([0, 0.5, 1], size=(6, 20), p=[0.3, 0.4, 0.3])
  label = np.where(rng.uniform(size=label.shape) < 0.5, label,
                   (np.sign(first - second) + 1) / 2)  # fmt: skip
  valid = rng.uniform(size=label.shape) < 0.8
  given = [_f32(np.where(valid, x, np.nan)) for x in (first, second, label)]
  ours = losses.tie_calibrated_accuracy(*given, jnp.asarray(valid))
  theirs = [
    _best_of_all_thresholds(first[i][k], second[i][k], label[i][k])
    for i, k in enumerate(valid)
  ]
  _close(ours, theirs)


@pytest.mark.parametrize(
  "function",
  [losses.kendall_tau, losses.ndcg, losses.tie_calibrated_accuracy],
  ids=lambda f: f.__name__,
)
def test_examples_in_docstrings_run(function):
  finder = doctest.DocTestFinder(recurse=False)
  names = {"jnp": jnp, function.__name__: function}
  (test,) = finder.find(inspect.unwrap(function), "example", globs=names)
  result = doctest.DocTestRunner().run(test)
  assert result.attempted > 0
  assert not result.failed
