"""Losses of a margin, against known numbers, TRL's code and NumPy."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .pairs import (
  assert_is_numpys,
  assert_is_trls,
  at_zero,
  of_known,
  of_trl_inputs,
  random_pairs,
  softplus,
  trl_case,
  trl_cases,
)

OURS = {
  "sigmoid_norm": "dpo_mean",
  "ipo": "ipo",
  "hinge": "hinge",
  "robust": "robust_dpo",
  "exo_pair": "exo",
  "discopop": "discopop",
}
MARGINS = ["dpo", "ipo_sum", "robust_dpo", "hinge", "exo", "discopop"]

# What hypothesis draws; every number here is a float32.
log_ratios = st.floats(-40.0, 40.0, width=32)
few = settings(deadline=None, max_examples=25, derandomize=True)


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("dpo", {"beta": 0.1}, [0.5672321, 0.7817553]),
    ("dpo", {"beta": 0.5}, [0.2305086, 1.2058651]),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, [0.5942321, 0.7647553]),
    ("dpo_mean", {"beta": 0.1}, [0.6587596, 0.7339470]),
    ("ipo", {"beta": 0.1}, [18.49, 33.64]),
    ("ipo_sum", {"beta": 0.1}, [5.29, 44.89]),
    ("robust_dpo", {}, [0.5334821, 0.8030053]),
    ("hinge", {"beta": 0.1}, [0.73, 1.17]),
    ("hinge", {"beta": 0.5}, [0.0, 1.85]),
    ("exo", {}, [2.3068666, 3.0576624]),
    ("discopop", {}, [0.7624976, 0.7947882]),
  ],
)
def test_two_known_pairs(name, options, expected):
  np.testing.assert_allclose(of_known(name, {}, **options), expected, rtol=1e-6)


@trl_cases(*OURS)
def test_trls_values_and_gradients(case):
  assert_is_trls(OURS[case["name"]], case, **case["options"])


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_is_trls_sigmoid(beta):
  assert_is_trls("dpo", trl_case("sigmoid", beta=beta), beta=beta)


def test_label_smoothing_works_where_trl_ignores_it():
  smooth = {"beta": 0.5, "label_smoothing": 0.1}
  theirs = trl_case("sigmoid", **smooth)
  assert theirs["loss"] == trl_case("sigmoid", beta=0.5)["loss"]
  values, _ = of_trl_inputs("dpo", theirs, **smooth)
  margin = 0.5 * np.subtract(*theirs["logratio"])
  expected = 0.9 * softplus(-margin) + 0.1 * softplus(margin)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert np.abs(values - np.array(theirs["loss"])).max() > 1e-3


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_dpo_is_numpys(beta, label_smoothing):
  def reference(chosen, rejected, beta, label_smoothing):
    p = 1.0 / (1.0 + np.exp(-beta * (chosen - rejected)))
    return -(1 - label_smoothing) * np.log(p) - label_smoothing * np.log(1 - p)

  inputs = random_pairs(0, "chosen_logratio", "rejected_logratio", size=2.0)
  options = {"beta": beta, "label_smoothing": label_smoothing}
  assert_is_numpys("dpo", reference, inputs, **options)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_summed_ipo_is_numpys(beta):
  reference = lambda c, r, beta: np.square(c - r - 0.5 / beta)
  inputs = random_pairs(1, "chosen_logratio", "rejected_logratio")
  assert_is_numpys("ipo_sum", reference, inputs, beta=beta)


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("dpo", {"label_smoothing": 0.2}, np.log(2)),
    ("dpo_mean", {}, np.log(2)),
    ("ipo", {"beta": 0.5}, 1.0),
    ("ipo_sum", {"beta": 0.25}, 4.0),
    ("robust_dpo", {}, np.log(2)),
    ("hinge", {}, 1.0),
    ("exo", {"label_smoothing": 0.1}, -np.log(2 * 0.3)),
    ("discopop", {}, (1 + np.log(2)) / 2),
  ],
)
def test_values_where_both_models_agree(name, options, expected):
  np.testing.assert_allclose(at_zero(name, **options), expected, rtol=1e-6)


def _of_margin(name, **options):
  """A loss as a function of chosen - rejected, jitted."""
  loss = functools.partial(losses.get(name), **options)
  return jax.jit(lambda margin: loss(margin, jnp.zeros_like(margin)))


@pytest.mark.parametrize("name", MARGINS)
def test_only_the_margin_counts(name):
  chosen, rejected = jnp.array([3.0, -8.0]), jnp.array([1.5, 2.0])
  values = losses.get(name)(chosen, rejected)
  np.testing.assert_allclose(
    _of_margin(name)(chosen - rejected), values, rtol=1e-6
  )


_dpo, _robust = _of_margin("dpo"), _of_margin("robust_dpo", label_smoothing=0.2)


@few
@given(log_ratios)
def test_swapping_a_pair_adds_its_margin(margin):
  """-log σ(-m) + log σ(m) = m."""
  margin = jnp.array([margin], jnp.float32)
  # Measured: 4e-7, by a margin of 4.
  difference = _dpo(-margin) - _dpo(margin)
  np.testing.assert_allclose(difference, 0.1 * margin, atol=2e-6)


@few
@given(log_ratios)
def test_robust_dpo_is_unbiased(margin):
  """Over labels of which a fifth is flipped, it is DPO of the clean ones."""
  margin = jnp.array([margin], jnp.float32)
  mean = 0.8 * _robust(margin) + 0.2 * _robust(-margin)
  np.testing.assert_allclose(mean, _dpo(margin), rtol=1e-5, atol=2e-6)


def test_robust_dpo_without_noise_is_dpo():
  margin = jnp.linspace(-30.0, 30.0, 41)
  clean = _of_margin("robust_dpo", label_smoothing=0.0)
  np.testing.assert_allclose(clean(margin), _dpo(margin), rtol=1e-6)


_exo = _of_margin("exo", label_smoothing=0.1)


@few
@given(log_ratios)
def test_exo_is_a_divergence(margin):
  margin = jnp.array([margin], jnp.float32)
  assert _exo(margin) >= -1e-7
  # Both ways round: of swapped labels, as of a label smoothed by 1 - s.
  q = 1.0 / (1.0 + np.exp(-0.1 * np.float64(margin)))
  swapped = q * np.log(q / 0.1) + (1 - q) * np.log((1 - q) / 0.9)
  np.testing.assert_allclose(_exo(-margin), swapped, rtol=1e-5, atol=1e-6)


def test_exo_rests_at_its_label():
  rest = jnp.array([np.log(0.9 / 0.1) / 0.1], jnp.float32)
  np.testing.assert_allclose(_exo(rest), 0.0, atol=1e-6)
  slope = jax.grad(lambda m: jnp.sum(_exo(m)))
  np.testing.assert_allclose(slope(rest), 0.0, atol=1e-7)
  assert slope(rest - 1.0) < 0.0 < slope(rest + 1.0)


@pytest.mark.parametrize("name", ["ipo", "ipo_sum"])
def test_ipo_rests_at_its_target(name):
  target = jnp.array([1.0 / (2.0 * 0.2)])
  values, slope = jax.value_and_grad(
    lambda m: jnp.sum(_of_margin(name, beta=0.2)(m))
  )(target)
  assert values == 0.0
  assert slope == 0.0


def test_ipo_averages_as_trl_does_and_ipo_sum_does_not():
  case = trl_case("ipo", beta=0.5)
  averaged, _ = of_trl_inputs("ipo", case, beta=0.5)
  summed, _ = of_trl_inputs("ipo_sum", case, beta=0.5)
  np.testing.assert_allclose(averaged, case["loss"], rtol=5e-6)
  expected = np.square(np.subtract(*case["logratio"]) - 1.0)
  np.testing.assert_allclose(summed, expected, rtol=5e-6)
  assert np.abs(summed - np.array(case["loss"])).max() > 0.1


def test_hinge_stops_at_its_margin():
  slope = jax.grad(lambda m: jnp.sum(_of_margin("hinge", beta=0.5)(m)))
  margin = jnp.array([1.9, 2.1, -100.0])
  np.testing.assert_allclose(slope(margin), [-0.5, 0.0, -0.5])


def test_discopop_rises_around_zero():
  """So that pairs may come to rest at a margin of -0.12."""
  slope = jax.grad(lambda m: jnp.sum(_of_margin("discopop", beta=1.0)(m)))
  signs = np.sign(slope(jnp.array([-0.5, -0.2, -0.05, 0.0, 0.05, 0.2])))
  np.testing.assert_array_equal(signs, [-1, -1, 1, 1, 1, -1])


def test_discopop_is_exact_where_trl_overflows():
  far = {"beta": 0.5, "tau": 0.05}
  case = trl_case("discopop", **far, far=True)
  theirs = np.array(case["loss"])
  assert np.isnan(theirs).sum() == 5
  values, grads = of_trl_inputs("discopop", case, **far)
  margin = 0.5 * np.subtract(*case["logratio"])
  # e^-m has no part in it so far from 0, other than as e^(m / tau - m).
  logistic = np.where(margin < 0, softplus(-margin), np.exp(-np.abs(margin)))
  np.testing.assert_allclose(values, logistic, rtol=1e-5, atol=1e-12)
  np.testing.assert_allclose(
    grads[0], np.where(margin < 0, -0.5, 0.0), atol=1e-8
  )


def test_discopop_stops_where_a_wide_step_overflows():
  loss = lambda m: jnp.sum(_of_margin("discopop", beta=1.0, tau=4.0)(m))
  for margin in (-200.0, -1e4):
    value, slope = jax.value_and_grad(loss)(jnp.array([margin]))
    np.testing.assert_allclose(value, np.exp(80.0), rtol=1e-5)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", ["dpo", "robust_dpo"])
@pytest.mark.parametrize("bad", [-0.1, 0.5, 1, float("nan")])
def test_label_smoothing_out_of_range(name, bad):
  with pytest.raises(ValueError, match=r"label_smoothing .* below 0\.5"):
    losses.get(name)(jnp.zeros(2), jnp.zeros(2), label_smoothing=bad)


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, 0.5])
def test_exo_without_smoothing_is_refused(bad):
  with pytest.raises(ValueError, match=f"label_smoothing is {bad:g}; it must"):
    losses.exo(jnp.zeros(2), jnp.zeros(2), label_smoothing=bad)


def test_a_step_of_discopop_without_width_is_refused():
  with pytest.raises(ValueError, match="tau is 0; it must be at least"):
    losses.discopop(jnp.zeros(2), jnp.zeros(2), tau=0)
