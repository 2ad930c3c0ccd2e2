"""Listwise losses against known numbers, float64 NumPy and pair losses."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .numeric import array, assert_is_numpys, softplus

# Four ranked responses.
VALUES = array([0.3, -0.1, 0.6, -0.7])
SCORES = array([4.0, 3.0, 2.0, 1.0])
VALID = array([True] * 4)
INPUTS = {"values": VALUES, "scores": SCORES, "valid": VALID}
ALL = [
  "plackett_luce",
  "listwise_softmax",
  "nca_listwise",
  "all_pairs",
  "all_pairs_mean",
]
jitted = {name: jax.jit(losses.get(name)) for name in ALL}
same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def _of(name, inputs=None, **options):
  return jitted[name](*(INPUTS | (inputs or {})).values(), **options)


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("plackett_luce", {"beta": 0.1}, 3.0935881),
    ("plackett_luce", {"beta": 0.5}, 2.8479341),
    ("listwise_softmax", {}, 1.3700381),
    ("nca_listwise", {}, 1.3780088),
  ],
)
def test_of_a_known_list(name, options, expected):
  np.testing.assert_allclose(_of(name, **options), expected, rtol=1e-6)


def test_all_pairs_of_a_known_list():
  margins = [0.4, -0.3, 1.0, -0.7, 0.6, 1.3]
  expected = softplus(-0.1 * np.array(margins))
  np.testing.assert_allclose(_of("all_pairs"), expected.sum(), rtol=1e-6)
  np.testing.assert_allclose(_of("all_pairs_mean"), expected.mean(), rtol=1e-6)


# Each in its own words: sorted, and pair by pair; of one list.
def _plackett_luce(values, scores):
  z = 0.3 * values[np.argsort(-scores)]
  return sum(np.log(np.exp(z[k:] - z[k]).sum()) for k in range(len(z)))


def _target(scores):
  return np.exp(scores / 2) / np.exp(scores / 2).sum()


def _listwise_softmax(values, scores):
  chances = np.exp(0.3 * values) / np.exp(0.3 * values).sum()
  return -(_target(scores) * np.log(chances)).sum()


def _nca_listwise(values, scores):
  pulled = _target(scores) * softplus(-0.3 * values)
  return pulled.sum() + softplus(0.3 * values).mean()


def _better(scores):
  items = range(len(scores))
  return [(i, j) for i in items for j in items if scores[i] > scores[j]]


def _all_pairs(values, scores):
  return sum(
    softplus(0.3 * (values[j] - values[i])) for i, j in _better(scores)
  )


def _all_pairs_mean(values, scores):
  return _all_pairs(values, scores) / max(1, len(_better(scores)))


OPTIONS = {
  "plackett_luce": {"beta": 0.3},
  "listwise_softmax": {"beta": 0.3, "alpha": 2.0},
  "nca_listwise": {"beta": 0.3, "alpha": 2.0},
  "all_pairs": {"beta": 0.3},
  "all_pairs_mean": {"beta": 0.3},
}


@pytest.mark.parametrize("name", ALL)
def test_is_numpys(name):
  def reference(values, scores, valid):
    of_list = globals()[f"_{name}"]
    rows = zip(values, scores, valid, strict=True)
    return np.array(
      [of_list(v[m], s[m]) if m.sum() >= 2 else 0.0 for v, s, m in rows]
    )

  rng = np.random.default_rng(0)
  shape = 6, 4
  valid = np.arange(4) < np.array([4, 4, 3, 2, 1, 0])[:, None]
  valid[1] = [True, False, True, True]
  inputs = {
    "values": rng.normal(scale=4.0, size=shape),
    "scores": rng.normal(size=shape),
    "valid": valid,
  }
  loss = functools.partial(losses.get(name), **OPTIONS[name])
  assert_is_numpys(loss, reference, inputs, ["values"])


def test_where_policy_and_reference_agree():
  same_value = {"values": jnp.zeros(4)}
  expected = {
    "plackett_luce": np.log(24),
    "listwise_softmax": np.log(4),
    "nca_listwise": 2 * np.log(2),
    "all_pairs": 6 * np.log(2),
    "all_pairs_mean": np.log(2),
  }
  for name, value in expected.items():
    same(_of(name, same_value, beta=3.0), value)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_items_teach_nothing(name, count):
  valid = jnp.arange(4) < count

  def total(x):
    return _of(name, {"values": x, "valid": valid})

  value, grad = jax.value_and_grad(total)(VALUES)
  assert value == 0.0
  np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize(
  "name", ["plackett_luce", "all_pairs", "all_pairs_mean"]
)
def test_ties_are_not_compared(name):
  total = lambda x, scores: _of(name, {"values": x, "scores": scores})
  tied = jnp.full(4, 2.0)
  value, grad = jax.value_and_grad(total)(VALUES, tied)
  assert value == 0.0
  np.testing.assert_array_equal(grad, 0.0)
  # Two of four: each is compared with the first and the last alone.
  value = total(VALUES, array([2.0, 1.0, 1.0, 0.0]))
  z = 0.1 * np.asarray(VALUES, np.float64)
  pairs = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
  expected = sum(softplus(z[j] - z[i]) for i, j in pairs)
  if name == "all_pairs_mean":
    expected /= 5
  if name == "plackett_luce":  # the first is drawn from all at once
    expected = np.log(np.exp(z).sum()) - z[0]
    expected += sum(softplus(z[3] - z[i]) for i in (1, 2))
  same(value, expected)


def test_softmax_of_equal_scores_draws_values_together():
  equal = {"scores": jnp.ones(4)}
  total = lambda x: _of("listwise_softmax", equal | {"values": x}, beta=1.0)
  slope = jax.grad(total)(VALUES)
  assert (np.sign(slope) == np.sign(VALUES - jnp.mean(VALUES))).all()
  np.testing.assert_allclose(jax.grad(total)(jnp.ones(4)), 0.0, atol=1e-7)


floats = st.floats(-50, 50, width=32)
lists = st.lists(st.tuples(floats, st.integers(0, 3)), min_size=4, max_size=4)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(lists, st.permutations(range(4)), st.integers(2, 4))
def test_the_order_of_items_does_not_matter(items, order, count):
  """Ties included."""
  x, scores = array(np.array(items).T)
  order, valid = np.array(order), np.arange(4) < count
  for name in ALL:
    given = {"values": x, "scores": scores, "valid": array(valid)}
    moved = {key: y[order] for key, y in given.items()}
    same(_of(name, given), _of(name, moved), err_msg=name)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(floats, floats, st.booleans())
def test_two_items_are_a_pair(a, b, first_is_better):
  values = array([a, b])
  scores = array([1.0, 0.0] if first_is_better else [0.0, 1.0])
  pair = values if first_is_better else values[::-1]
  pair = [x[None] for x in pair]
  given = {"values": values, "scores": scores, "valid": VALID[:2]}
  dpo = losses.dpo(*pair, beta=0.1)[0]
  for name in ("plackett_luce", "all_pairs", "all_pairs_mean"):
    same(_of(name, given), dpo)
  # Scores become labels: hard ones where they are cold, else soft ones.
  same(_of("listwise_softmax", given, alpha=1e-3), dpo)
  soft = losses.dpo(*pair, beta=0.1, label_smoothing=1 / (1 + np.e))[0]
  same(_of("listwise_softmax", given), soft)
  chosen, rejected = 0.1 * np.float64(pair[0][0]), 0.1 * np.float64(pair[1][0])
  nca = softplus(-chosen) + softplus(chosen) / 2 + softplus(rejected) / 2
  same(_of("nca_listwise", given, alpha=1e-3), nca)


def test_softmax_needs_no_reference_level():
  """InfoNCA and the pair losses see differences of values only; NCA more."""
  moved = {"values": VALUES + 3.0}
  for name in ALL:
    apart = abs(_of(name, moved) - _of(name))
    assert apart > 1e-3 if name == "nca_listwise" else apart < 1e-6
