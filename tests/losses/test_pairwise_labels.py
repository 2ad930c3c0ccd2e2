"""Losses of soft, tied and graded labels, against known numbers and NumPy."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .pairs import (
  KNOWN,
  assert_is_numpys,
  at_zero,
  of_known,
  random_pairs,
  softplus,
)

RATIOS = ("chosen_logratio", "rejected_logratio")
SCORES = {"chosen_score": [1.3, 0.7], "rejected_score": [0.2, 0.9]}
TIES = ["dpo_rao_kupper", "dpo_davidson"]

margins = st.floats(-300.0, 300.0, width=32)
preferences = st.floats(0.0, 1.0, width=32)
few = settings(deadline=None, max_examples=25, derandomize=True)


@pytest.mark.parametrize(
  ("name", "given", "options", "expected"),
  [
    ("dpo_soft", {"preference": [0.9, 0.9]}, {}, [0.5942321, 0.7647553]),
    ("irepo", {"preference": [0.8, 0.4]}, {}, [1.2461131, 0.0554438]),
    ("rebel", SCORES, {}, [2.56, 2.25]),
    # log(1 + e^(1 - m)) at margins m of 0.27 and -0.17.
    ("dpo_margin", {}, {}, [1.1233311, 1.4403072]),
    ("dpo_margin", {}, {"margin": 0.0}, [0.5672321, 0.7817553]),
    ("dpo_offset", {"offset": [1.0, 1.0]}, {}, [1.1233311, 1.4403072]),
  ],
)
def test_two_known_pairs(name, given, options, expected):
  values = of_known(name, given, **options)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_irepo_of_votes():
  """Log-odds of Zermelo strengths, and of unanimous votes."""
  given = {
    "chosen_logratio": [0.5, 0.4],
    "rejected_logratio": [-1.0, 0.6],
    "preference": [1 / (1 + np.exp(-1.727051003)), 0.4],
  }
  values = of_known("irepo", given)
  np.testing.assert_allclose(values, [2.487089865, 0.148583350], rtol=1e-5)
  values = of_known("irepo", given | {"preference": [1.0, 0.4]})
  np.testing.assert_allclose(values.mean(), 3.978736279, rtol=1e-6)


def test_rebel_as_in_the_paper_and_as_in_the_authors_code():
  """With η = 0.5: the code multiplies the rewards by it."""
  paper = of_known("rebel", SCORES, beta=1 / 0.5)
  np.testing.assert_allclose(paper.mean(), 14.365, rtol=1e-6)
  code = np.square([2.7 - 0.5 * 1.1, -1.7 + 0.5 * 0.2])
  np.testing.assert_allclose(code.mean(), 3.59125)
  np.testing.assert_allclose(paper / 2.0**2, code, rtol=1e-6)


def _outcomes(p, win, tie, defeat):
  return np.where(
    p > 0.5,
    -(2 * p - 1) * np.log(win) - (2 - 2 * p) * np.log(tie),
    -(1 - 2 * p) * np.log(defeat) - 2 * p * np.log(tie),
  )


def _rao_kupper(c, r, p, beta, nu):
  one, two = np.exp(beta * c), np.exp(beta * r)  # strengths
  win, defeat = one / (one + nu * two), two / (two + nu * one)
  tie = (nu**2 - 1) * one * two / ((one + nu * two) * (two + nu * one))
  np.testing.assert_allclose(win + tie + defeat, 1.0)
  return _outcomes(p, win, tie, defeat)


def _davidson(c, r, p, beta, nu):
  one, two = np.exp(beta * c), np.exp(beta * r)
  mean = 2 * nu * np.sqrt(one * two)
  total = one + two + mean
  return _outcomes(p, one / total, mean / total, two / total)


def _dpo_soft(c, r, p, beta):
  m = beta * (c - r)
  return p * softplus(-m) + (1 - p) * softplus(m)


def _irepo(c, r, p, beta, floor):
  p = np.where(p < floor, floor, np.where(p > 1 - floor, 1 - floor, p))
  return np.square(beta * (c - r) - np.log(p / (1 - p)))


def _odpo(c, r, a, b, beta, alpha):
  difference = np.where(a - b > 1e-6, a - b, 1e-6)
  return softplus(-beta * (c - r) + alpha * np.log(difference))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
  ("name", "reference", "options"),
  [
    ("dpo_soft", _dpo_soft, {"beta": 0.2}),
    ("dpo_rao_kupper", _rao_kupper, {"beta": 0.2, "nu": 3.0}),
    ("dpo_rao_kupper", _rao_kupper, {"beta": 1.0, "nu": 1.1}),
    ("dpo_davidson", _davidson, {"beta": 0.2, "nu": 1.0}),
    ("dpo_davidson", _davidson, {"beta": 1.0, "nu": 0.1}),
    (
      "dpo_margin",
      lambda c, r, beta, margin: softplus(margin - beta * (c - r)),
      {"beta": 0.2, "margin": 0.6},
    ),
    (
      "dpo_offset",
      lambda c, r, offset, beta: softplus(offset - beta * (c - r)),
      {"beta": 0.2},
    ),
    ("odpo", _odpo, {"beta": 0.2, "alpha": 0.7}),
    ("irepo", _irepo, {"beta": 0.2, "floor": 0.2}),
    (
      "rebel",
      lambda c, r, a, b, beta: np.square(beta * (c - r) - (a - b)),
      {"beta": 0.5},
    ),
  ],
)
def test_numpys_values_and_gradients(name, reference, options, seed):
  inputs = random_pairs(seed, *losses.inputs(losses.get(name)))
  assert_is_numpys(name, reference, inputs, **options)


@pytest.mark.parametrize(
  ("name", "preference", "options", "expected"),
  [
    ("dpo_soft", 0.7, {}, np.log(2)),
    ("dpo_rao_kupper", 1.0, {}, np.log(4)),
    ("dpo_rao_kupper", 0.5, {}, np.log(2)),
    ("dpo_rao_kupper", 0.5, {"nu": 2.0}, np.log(3)),
    ("dpo_davidson", 1.0, {}, np.log(4)),
    ("dpo_davidson", 0.5, {}, np.log(2)),
    ("dpo_davidson", 0.5, {"nu": 0.5}, np.log(3)),
    ("irepo", 0.5, {}, 0.0),
  ],
)
def test_values_where_both_models_agree(name, preference, options, expected):
  agree = {key: [0.0, 0.0] for key in RATIOS}
  values = of_known(name, agree | {"preference": [preference] * 2}, **options)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_margins_where_both_models_agree():
  np.testing.assert_allclose(
    at_zero("dpo_margin", margin=2.0), softplus(2.0), rtol=1e-6
  )
  np.testing.assert_allclose(at_zero("dpo_offset"), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(at_zero("rebel"), 0.0)


def _of_margin(name, **options):
  """A loss of chosen - rejected and the preference, with its slope, jitted."""

  def total(margin, preference):
    zero = jnp.zeros_like(margin)
    return jnp.sum(losses.get(name)(margin, zero, preference, **options))

  both = jax.jit(jax.value_and_grad(total))
  return lambda m, p: both(jnp.float32([m]), jnp.float32([p]))


_OF_MARGIN = {name: _of_margin(name) for name in ["dpo_soft", "irepo", *TIES]}


@pytest.mark.parametrize("name", TIES)
def test_a_tie_rests_at_no_margin(name):
  assert _OF_MARGIN[name](0.0, 0.5)[1] == 0.0
  assert _OF_MARGIN[name](-1.0, 0.5)[1] < 0 < _OF_MARGIN[name](1.0, 0.5)[1]
  # A win goes on pulling.
  assert _OF_MARGIN[name](30.0, 1.0)[1] < 0


@few
@given(margins)
@pytest.mark.parametrize("name", TIES)
def test_outcomes_are_a_distribution(name, margin):
  parts = [np.exp(-_OF_MARGIN[name](margin, p)[0]) for p in (0.0, 0.5, 1.0)]
  np.testing.assert_allclose(sum(parts), 1.0, rtol=1e-5)


@few
@given(margins, preferences)
@pytest.mark.parametrize("name", _OF_MARGIN)
def test_swapping_a_pair_and_its_label_changes_nothing(
  name, margin, preference
):
  loss = _OF_MARGIN[name]
  there, back = loss(margin, preference), loss(-margin, 1.0 - preference)
  np.testing.assert_allclose(there[0], back[0], rtol=2e-5, atol=1e-5)
  np.testing.assert_allclose(there[1], -back[1], rtol=1e-4, atol=1e-5)


@few
@given(margins)
def test_davidson_keeps_the_odds_of_dpo(margin):
  """win : defeat = e^m, which Rao and Kupper's threshold changes."""
  log_odds = _OF_MARGIN["dpo_davidson"](margin, 0.0)[0]
  log_odds -= _OF_MARGIN["dpo_davidson"](margin, 1.0)[0]
  np.testing.assert_allclose(log_odds, 0.1 * margin, rtol=1e-5, atol=1e-5)


def test_a_sure_outcome_keeps_its_digits():
  for name in TIES:
    value, _ = _OF_MARGIN[name](400.0, 1.0)  # a margin of 40
    exact = 3 * np.exp(-40.0) if name == TIES[0] else 2 * np.exp(-20.0)
    np.testing.assert_allclose(value, exact, rtol=1e-4)


def test_few_ties_give_dpo():
  margin = jnp.linspace(-50.0, 50.0, 21)
  zero, sure = jnp.zeros_like(margin), jnp.ones_like(margin)
  dpo = losses.dpo(margin, zero)
  for name, nu in zip(TIES, (1.0 + 1e-6, 1e-6)):
    values = losses.get(name)(margin, zero, sure, nu=nu)
    np.testing.assert_allclose(values, dpo, rtol=1e-5, atol=1e-5)


def test_rao_kupper_of_wins_is_dpo_with_a_margin():
  c, r = (jnp.float32(x) for x in random_pairs(5, *RATIOS).values())
  values = losses.dpo_rao_kupper(c, r, jnp.ones_like(c), nu=3.0)
  expected = losses.dpo_margin(c, r, margin=np.log(3.0))
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_soft_label_of_one_is_hard():
  c, r = (jnp.float32(x) for x in random_pairs(6, *RATIOS).values())
  hard = losses.dpo_soft(c, r, jnp.ones_like(c), beta=0.3)
  np.testing.assert_allclose(hard, losses.dpo(c, r, beta=0.3), rtol=1e-6)
  soft = losses.dpo_soft(c, r, jnp.full_like(c, 0.8), beta=0.3)
  smoothed = losses.dpo(c, r, beta=0.3, label_smoothing=0.2)
  np.testing.assert_allclose(soft, smoothed, rtol=1e-6)


@pytest.mark.parametrize("name", ["dpo_soft", "irepo"])
def test_soft_labels_rest_at_their_log_odds(name):
  margin = np.log(0.8 / 0.2) / 0.1
  loss = _OF_MARGIN[name]
  assert loss(margin, 0.8)[1] == pytest.approx(0.0, abs=1e-7)
  assert loss(margin - 1, 0.8)[1] < 0 < loss(margin + 1, 0.8)[1]


def test_irepo_with_one_target_is_ipo():
  """log(p / (1 - p)) = 1/2 for every pair, and then the loss over beta²."""
  c, r = (jnp.float32(x) for x in random_pairs(7, *RATIOS).values())
  share = jnp.full_like(c, 1 / (1 + np.exp(-0.5)))
  values = losses.irepo(c, r, share, beta=0.2) / 0.2**2
  np.testing.assert_allclose(values, losses.ipo_sum(c, r, beta=0.2), rtol=1e-4)


def test_odpo_is_dpo_with_the_offset_of_its_scores():
  c, r = (jnp.float32(KNOWN[key]) for key in RATIOS)
  ours = losses.odpo(c, r, jnp.float32([3.0, 1.0]), jnp.float32([1.0, 2.0]))
  offset = jnp.log(jnp.float32([2.0, 1e-6]))  # the second is the wrong way
  np.testing.assert_allclose(ours, losses.dpo_offset(c, r, offset), rtol=1e-6)
  even = losses.odpo(c, r, jnp.float32([2.0, 2.0]), jnp.float32([1.0, 1.0]))
  np.testing.assert_allclose(even, losses.dpo(c, r), rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "option", "bad", "message"),
  [
    ("dpo_rao_kupper", "nu", 1, "nu - 1 is 0; it must be at least"),
    ("dpo_davidson", "nu", 0.0, "nu is 0; it must be at least"),
    ("irepo", "floor", 0.0, "floor is 0; it must be at least"),
    ("irepo", "floor", 0.5, r"floor is 0\.5; .* below 0\.5"),
  ],
)
def test_hyper_parameters_out_of_range(name, option, bad, message):
  x = jnp.ones(2)
  with pytest.raises(ValueError, match=message):
    losses.get(name)(x, x, x, **{option: bad})
