"""DPO under other divergences, against known numbers, TRL's code and NumPy."""

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
  "forward_kl": "dpo_forward_kl",
  "js_divergence": "dpo_jensen_shannon",
  "alpha_divergence": "dpo_alpha",
}
log_ratios = st.floats(-12.0, 12.0, width=32)
few = settings(deadline=None, max_examples=25, derandomize=True)


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("dpo_forward_kl", {}, [0.3057459, 0.7443060]),
    ("dpo_jensen_shannon", {}, [0.6011840, 0.7234285]),
    ("dpo_alpha", {}, [0.4771497, 0.7584285]),
    ("dpo_alpha", {"alpha": 0.3}, [0.4198118, 0.7519472]),
  ],
)
def test_two_known_pairs(name, options, expected):
  np.testing.assert_allclose(of_known(name, {}, **options), expected, rtol=1e-6)


@trl_cases("sigmoid", option="f_divergence_type")
def test_trls_values_and_gradients(case):
  options = dict(case["options"])
  divergence = options.pop("f_divergence_type")
  assert_is_trls(OURS[divergence], case, **options)


def _alpha(c, r, beta, alpha):
  reward = lambda x: (np.exp((alpha - 1) * x) - 1) / (alpha - 1)
  return softplus(-beta * (reward(c) - reward(r)))


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.9, 2.0])
def test_alpha_is_numpys(alpha):
  inputs = random_pairs(0, "chosen_logratio", "rejected_logratio", size=1.5)
  assert_is_numpys("dpo_alpha", _alpha, inputs, beta=0.2, alpha=alpha)


@pytest.mark.parametrize("name", OURS.values())
def test_values_where_both_models_agree(name):
  np.testing.assert_allclose(at_zero(name), np.log(2), rtol=1e-6)


_alpha_jitted = jax.jit(lambda c, r, alpha: losses.dpo_alpha(c, r, alpha=alpha))
_dpo, _forward = jax.jit(losses.dpo), jax.jit(losses.dpo_forward_kl)


@few
@given(log_ratios, log_ratios)
def test_alpha_goes_from_reverse_to_forward_kl(chosen, rejected):
  """1 and 0 as TRL 1.16 counts; 0 and 1, TRL 0.19's default, as the paper."""
  pair = jnp.array([chosen], jnp.float32), jnp.array([rejected], jnp.float32)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
  close(_alpha_jitted(*pair, 1.0), _dpo(*pair))
  close(_alpha_jitted(*pair, 0.0), _forward(*pair))
  # Near the limit too, where 1 / (alpha - 1) is large.
  close(_alpha_jitted(*pair, 1.0 - 1e-5), _dpo(*pair), rtol=1e-3, atol=1e-4)


def test_the_limit_of_reverse_kl_has_gradients():
  pair = jnp.array([2.0]), jnp.array([-1.0])
  slope = lambda loss: jax.grad(lambda *x: jnp.sum(loss(*x)), (0, 1))(*pair)
  limit = lambda *x: losses.dpo_alpha(*x, alpha=1.0)
  np.testing.assert_allclose(slope(limit), slope(losses.dpo), rtol=1e-6)
  by_alpha = jax.grad(lambda a: jnp.sum(losses.dpo_alpha(*pair, alpha=a)))
  assert np.isfinite(by_alpha(1.0))


@few
@given(log_ratios, log_ratios)
def test_swapping_a_pair_turns_its_margin(chosen, rejected):
  """The losses both ways are those of opposite margins: e^-a + e^-b = 1."""
  pair = jnp.array([chosen], jnp.float32), jnp.array([rejected], jnp.float32)
  both = [_alpha_jitted(*x, 0.5) for x in (pair, pair[::-1])]
  np.testing.assert_allclose(sum(np.exp(-x) for x in both), 1.0, rtol=1e-5)


def test_jensen_shannon_saturates_above_alone():
  """A likelier chosen response gains nothing; a rarer rejected one does."""
  total = lambda c, r: jnp.sum(losses.dpo_jensen_shannon(c, r))
  slope = jax.grad(total, (0, 1))
  chosen, rejected = slope(jnp.array([20.0]), jnp.array([-20.0]))
  assert abs(chosen[0]) < 1e-8
  expected = 0.1 / (1 + np.exp(2))  # that of DPO at a margin of 20
  np.testing.assert_allclose(rejected, expected, rtol=1e-6)


def test_forward_kl_stays_finite_where_trl_overflows():
  options = {"beta": 0.5}
  case = trl_case(
    "sigmoid", **options, f_divergence_type="forward_kl", far=True
  )
  theirs = np.array(case["loss"])
  assert (~np.isfinite(theirs)).sum() == 4
  values, grads = of_trl_inputs("dpo_forward_kl", case, **options)
  assert np.isfinite(values).all()
  assert np.isfinite(grads).all()
  kept = np.isfinite(theirs)
  np.testing.assert_allclose(values[kept], theirs[kept], rtol=1e-6)
  # Both below -80: cut at the same height. One below: 0.5 e^80.
  (both,) = np.flatnonzero(np.isnan(theirs))
  np.testing.assert_allclose(values[both], np.log(2), rtol=1e-6)
  np.testing.assert_allclose(values[~kept].max(), 0.5 * np.exp(80.0), rtol=1e-5)


@pytest.mark.parametrize("logratio", [-70.0, -79.0])
def test_exponents_are_exact_until_they_are_cut(logratio):
  pair = jnp.array([logratio]), jnp.array([0.0])
  loss = losses.dpo_forward_kl(*pair, beta=1e-3)
  np.testing.assert_allclose(loss, 1e-3 * np.exp(-logratio), rtol=1e-5)
