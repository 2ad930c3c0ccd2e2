"""Losses that rank by likelihood: known numbers, and float64 NumPy."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .numeric import array, assert_is_numpys

# Four ranked responses of known log-probs, over 3, 4, 4 and 5 tokens.
LOGP = array([-2.0, -2.6, -2.3, -4.0])
MEAN_LOGP = LOGP / array([3.0, 4.0, 4.0, 5.0])
SCORES = array([4.0, 3.0, 2.0, 1.0])
VALID = array([True] * 4)
INPUTS = {
  "mean_logp": MEAN_LOGP,
  "logp": LOGP,
  "scores": SCORES,
  "valid": VALID,
}
ALL = ["rrhf", "pro"]
jitted = {name: jax.jit(losses.get(name)) for name in ALL}
same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def _of(name, inputs=None, **options):
  return jitted[name](*(INPUTS | (inputs or {})).values(), **options)


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("rrhf", {"sft_weight": 0.0}, 0.1833333),
    ("rrhf", {}, 2.1833333),
    # The authors' code, its batch padded to 5 tokens.
    ("rrhf", {"rank_weight": 100.0, "sft_weight": 1 / 5}, 18.7333333),
    ("pro", {"sft_weight": 0.0}, 3.9861490),
    ("pro", {}, 4.8861490),
  ],
)
def test_of_a_known_list(name, options, expected):
  np.testing.assert_allclose(_of(name, **options), expected, rtol=1e-6)


def test_pro_without_temperatures():
  """It is then Plackett-Luce of the mean log-probs."""
  value = losses.plackett_luce(MEAN_LOGP, SCORES, VALID, beta=1.0)
  np.testing.assert_allclose(value, 3.0481772, rtol=1e-6)


# Each in its own words: sorted, and pair by pair; of one list.
def _rrhf(mean_logp, logp, scores):
  items = range(len(scores))
  better = [(i, j) for i in items for j in items if scores[i] > scores[j]]
  wrong = [max(0.0, mean_logp[j] - mean_logp[i]) for i, j in better]
  return 3 * sum(wrong) - 0.5 * logp[np.argmax(scores)]


def _pro(mean_logp, logp, scores):
  order = np.argsort(-scores)
  p, r = mean_logp[order], scores[order]
  rank = 0.0
  for k in range(len(p) - 1):
    heat = r[k] - r[k + 1 :]
    terms = np.append(p[k + 1 :] * heat, p[k] * heat.max())
    rank += np.log(np.exp(terms).sum()) - terms[-1]
  return rank - 0.2 * (len(p) - 1) ** 2 * logp[order[0]]


OPTIONS = {
  "rrhf": {"rank_weight": 3.0, "sft_weight": 0.5},
  "pro": {"sft_weight": 0.2},
}


@pytest.mark.parametrize("name", ALL)
def test_is_numpys(name):
  def reference(mean_logp, logp, scores, valid):
    of_list = globals()[f"_{name}"]
    rows = zip(mean_logp, logp, scores, valid, strict=True)
    return np.array(
      [
        of_list(p[m], x[m], s[m]) if m.sum() >= 2 else 0.0
        for p, x, s, m in rows
      ]
    )

  rng = np.random.default_rng(0)
  shape = 6, 4
  valid = np.arange(4) < np.array([4, 4, 3, 2, 1, 0])[:, None]
  valid[1] = [True, False, True, True]
  inputs = {
    "mean_logp": -np.abs(rng.normal(size=shape)),
    "logp": -5 * np.abs(rng.normal(size=shape)),
    "scores": rng.normal(size=shape),
    "valid": valid,
  }
  loss = functools.partial(losses.get(name), **OPTIONS[name])
  assert_is_numpys(loss, reference, inputs, ["mean_logp", "logp"])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_items_teach_nothing(name, count):
  valid = jnp.arange(4) < count

  def total(x):
    return _of(name, {"mean_logp": x, "logp": x, "valid": valid})

  value, grad = jax.value_and_grad(total)(LOGP)
  assert value == 0.0
  np.testing.assert_array_equal(grad, 0.0)


def test_of_several_best_the_mean_is_imitated():
  scores = array([4.0, 4.0, 2.0, 1.0])
  value = _of("rrhf", {"scores": scores}, rank_weight=0.0)
  np.testing.assert_allclose(value, 2.3, rtol=1e-6)


def test_pro_of_equal_items():
  """Each is drawn from two that are equally likely, whatever the gap is."""
  p, scores = array([-1.0, -1.0]), array([1.0, 0.0])
  value = losses.pro(p, p, scores, VALID[:2], sft_weight=0.5)
  np.testing.assert_allclose(value, np.log(2) + 0.5, rtol=1e-6)


floats = st.floats(-50, 50, width=32)
lists = st.lists(st.tuples(floats, st.integers(0, 3)), min_size=4, max_size=4)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(lists, st.permutations(range(4)), st.integers(2, 4))
def test_the_order_of_items_does_not_matter(items, order, count):
  """Ties included."""
  x, scores = array(np.array(items).T)
  order, valid = np.array(order), np.arange(4) < count
  for name in ALL:
    given = {
      "mean_logp": -abs(x) / 8,
      "logp": -abs(x),
      "scores": scores,
      "valid": array(valid),
    }
    moved = {key: y[order] for key, y in given.items()}
    same(_of(name, given), _of(name, moved), err_msg=name)
