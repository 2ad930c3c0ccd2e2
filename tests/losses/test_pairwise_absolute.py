"""Losses of each side by itself, against known numbers, TRL's code, NumPy."""

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
  "nca_pair": "nca",
  "bco_pair": "bco_pair",
  "sppo_hard": "sppo_hard",
  "apo_zero": "apo_zero",
  "apo_down": "apo_down",
}
RATIOS = ("chosen_logratio", "rejected_logratio")


@pytest.mark.parametrize(
  ("name", "given", "options", "expected"),
  [
    ("nca", {}, {}, [1.3225545, 1.4302743]),
    ("bco_pair", {}, {}, [1.2585896, 1.4741542]),
    ("bco_pair", {}, {"shift": -0.02}, [1.2576447, 1.4749025]),
    ("sppo_hard", {}, {}, [28.85, 69.29]),
    ("sppo", {"preference": [0.8, 0.8]}, {"beta": 0.1}, [3.825, 15.245]),
    ("sppo", {"preference": [1.0, 1.0]}, {"beta": 0.1}, [14.425, 34.645]),
    ("apo_zero", {}, {}, [0.9327869, 1.0424297]),
    ("apo_down", {}, {}, [0.9404065, 1.0373981]),
    ("dpop", {}, {}, [0.3680111, 3.5394587]),
    ("dpop", {}, {"penalty": 5.0}, [0.3680111, 1.1780111]),
    ("cal_dpo", {}, {"beta": 0.1}, [28.9150436, 71.1577860]),
  ],
)
def test_two_known_pairs(name, given, options, expected):
  values = of_known(name, given, **options)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@trl_cases(*OURS)
def test_trls_values_and_gradients(case):
  assert_is_trls(OURS[case["name"]], case, **case["options"])


def _sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def _bco_pair(c, r, beta, shift):
  return -np.log(_sigmoid(beta * c - shift) * _sigmoid(shift - beta * r))


def _sppo(c, r, p, beta):
  # Each towards its own win probability, p and 1 - p.
  return (
    np.square(c - (p - 0.5) / beta) + np.square(r - (1 - p - 0.5) / beta)
  ) / 2


def _dpop(c, r, beta, penalty):
  lost = np.where(c < 0, -c, 0.0)
  return softplus(-beta * (c - r - penalty * lost))


def _cal_dpo(c, r, beta, calibration):
  return softplus(r - c) + calibration * (
    np.square(c - 1 / (2 * beta)) + np.square(r + 1 / (2 * beta))
  )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
  ("name", "reference", "options"),
  [
    ("bco_pair", _bco_pair, {"beta": 0.3, "shift": 0.4}),
    ("sppo", _sppo, {"beta": 0.2}),
    ("dpop", _dpop, {"beta": 0.1, "penalty": 3.0}),
    ("cal_dpo", _cal_dpo, {"beta": 0.2, "calibration": 0.7}),
  ],
)
def test_numpys_values_and_gradients(name, reference, options, seed):
  inputs = random_pairs(seed, *losses.inputs(losses.get(name)))
  assert_is_numpys(name, reference, inputs, **options)


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("nca", {}, 2 * np.log(2)),
    ("bco_pair", {}, 2 * np.log(2)),
    ("sppo_hard", {"beta": 0.5}, 2.0),
    ("sppo", {"beta": 0.5}, 1.0),  # preference is 0: sure that the other wins
    ("apo_zero", {}, 1.0),
    ("apo_down", {}, 1.0),
    ("dpop", {}, np.log(2)),
    ("cal_dpo", {"beta": 0.5}, np.log(2) + 2.0),
    ("cal_dpo", {"beta": 0.5, "calibration": 0.5}, np.log(2) + 1.0),
  ],
)
def test_values_where_both_models_agree(name, options, expected):
  np.testing.assert_allclose(at_zero(name, **options), expected, rtol=1e-6)


def _slopes(name, chosen, rejected, **options):
  total = lambda c, r: jnp.sum(losses.get(name)(c, r, **options))
  given = jnp.array([chosen]), jnp.array([rejected])
  return [float(x[0]) for x in jax.grad(total, (0, 1))(*given)]


def test_ncas_chosen_response_has_a_target():
  rest = np.log(2) / 0.1
  assert _slopes("nca", rest, 0.0)[0] == pytest.approx(0.0, abs=1e-7)
  assert _slopes("nca", rest - 1, 0.0)[0] < 0 < _slopes("nca", rest + 1, 0.0)[0]
  assert all(_slopes("nca", rest, x)[1] > 0 for x in (-30.0, 0.0, 30.0))


def test_apo_zero_raises_one_and_apo_down_lowers_both():
  chosen, rejected = _slopes("apo_zero", 0.0, 0.0)
  assert chosen == pytest.approx(-0.025)
  assert rejected == pytest.approx(0.025)
  # At rest at 0; as soon as the rejected one is below, both fall.
  assert _slopes("apo_down", 0.0, 0.0)[0] == pytest.approx(0.0, abs=1e-8)
  assert min(_slopes("apo_down", 0.0, -1.0)) > 0


def test_sppo_and_cal_dpo_rest_at_their_targets():
  targets = [0.5 / 0.2, -0.5 / 0.2]
  assert _slopes("sppo_hard", *targets, beta=0.2) == [0.0, 0.0]
  chosen, rejected = _slopes("cal_dpo", *targets, beta=0.2, calibration=100.0)
  pull = float(_sigmoid(-5.0))  # of the margin, which is asked for no limit
  np.testing.assert_allclose([chosen, rejected], [-pull, pull], rtol=1e-5)


def test_swapping_preference_swaps_the_pair():
  c, r, p = random_pairs(2, *RATIOS, "preference").values()
  c, r, p = (jnp.asarray(x, jnp.float32) for x in (c, r, p))
  # 1 - p loses half a float32's last digit, which beta divides.
  np.testing.assert_allclose(
    losses.sppo(c, r, p, beta=0.1),
    losses.sppo(r, c, 1 - p, beta=0.1),
    rtol=1e-5,
  )


def test_sppo_is_halved_and_trls_is_not():
  case = trl_case("sppo_hard", beta=0.5)
  hard, _ = of_trl_inputs("sppo_hard", case, beta=0.5)
  c, r = jnp.asarray(case["logratio"], jnp.float32)
  soft = losses.sppo(c, r, jnp.ones_like(c), beta=0.5)
  np.testing.assert_allclose(2.0 * soft, hard, rtol=1e-6)
  np.testing.assert_allclose(soft, np.divide(case["loss"], 2.0), rtol=1e-6)
  # The known pairs: 24.535 on average, against TRL's 49.07.
  sure = {"preference": [1.0, 1.0]}
  assert of_known("sppo", sure, beta=0.1).mean() == pytest.approx(24.535)
  assert of_known("sppo_hard", {}).mean() == pytest.approx(49.07)


def test_bco_without_a_shift_is_trls_and_with_one_is_not():
  case = trl_case("bco_pair", beta=0.5)
  values, _ = of_trl_inputs("bco_pair", case, beta=0.5, shift=0.2)
  c, r = np.array(case["logratio"])
  np.testing.assert_allclose(values, _bco_pair(c, r, 0.5, 0.2), rtol=1e-5)
  assert np.abs(values - np.array(case["loss"])).max() > 1e-3


def test_apo_keeps_the_digits_of_small_losses():
  """Where 1 - σ(x), as TRL has it, is rounded to 0 in float32."""
  value = losses.apo_zero(jnp.array([300.0]), jnp.array([-300.0]))
  np.testing.assert_allclose(value, 2 * np.exp(-30.0), rtol=1e-5)


def test_dpop_is_dpo_unless_the_chosen_response_lost():
  c, r = (
    jnp.asarray(x, jnp.float32) for x in random_pairs(3, *RATIOS).values()
  )
  dpo = losses.dpo(c, r, beta=0.3)
  dpop = losses.dpop(c, r)
  kept = c >= 0
  assert 0 < kept.sum() < c.size
  np.testing.assert_allclose(dpop[kept], dpo[kept], rtol=1e-6)
  assert (dpop[~kept] > dpo[~kept]).all()


def test_cal_dpo_as_in_the_authors_code():
  """Which adds half the batch's mean squares to each pair."""
  values = of_known("cal_dpo", {}, beta=0.1, calibration=0.5)
  np.testing.assert_allclose(values.mean(), 25.5014148, rtol=1e-6)
