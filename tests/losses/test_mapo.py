"""MaPO in both of its published forms."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .numeric import array, assert_is_numpys, softplus

CHOSEN, REJECTED = array([0.015, 0.0775]), array([0.1075, 0.025])
FORMS = {"code": losses.mapo, "paper": losses.mapo_paper}
errors = st.floats(0.0009765625, 4.0, width=32)


def _gain(x):
  return x / np.expm1(x)


def _code(chosen_error, rejected_error):
  margin = 1000 * (_gain(0.5 * chosen_error) - _gain(0.5 * rejected_error))
  return chosen_error + 0.1 * softplus(-margin)


def _paper(chosen_error, rejected_error):
  margin = 8 * (_gain(chosen_error) - _gain(rejected_error))
  return chosen_error + softplus(-margin) / 8


def _slopes(loss, chosen, rejected):
  total = lambda *x: jnp.sum(loss(*x))
  return [
    x[0] for x in jax.grad(total, (0, 1))(array([chosen]), array([rejected]))
  ]


def test_two_known_pairs():
  code = losses.mapo(CHOSEN, REJECTED)
  np.testing.assert_allclose(code, [0.015, 1.3787896], rtol=1e-6)
  np.testing.assert_allclose(jnp.mean(code), 0.6968947977, rtol=1e-6)
  paper = losses.mapo_paper(CHOSEN, REJECTED)
  terms = np.array([0.5282554258, 0.8016699864]) / 8
  np.testing.assert_allclose(paper, [0.015, 0.0775] + terms, rtol=1e-6)
  np.testing.assert_allclose(jnp.mean(paper), 0.1293703383, rtol=1e-6)


@pytest.mark.parametrize(
  ("loss", "chosen", "rejected", "expected"),
  [
    (losses.mapo, 0.1, 0.12, 0.1007357584),
    (losses.mapo, 0.12, 0.1, 0.6115700235),
    (losses.mapo, 0.1, 0.1004, 0.1645190226),
    (losses.mapo_paper, 0.1, 0.12, 0.1819194374),
  ],
)
def test_known_errors(loss, chosen, rejected, expected):
  value = loss(array([chosen]), array([rejected]))
  # Measured: 4e-7, of a margin that float32 inputs themselves round to 3e-6.
  np.testing.assert_allclose(value, [expected], rtol=2e-6)


def test_known_gradients():
  """Of the code, whose margin leads at a tie, and of the paper."""
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5)
  near(_slopes(losses.mapo, 0.1, 0.12), [1.1802104, -0.1795997])
  near(_slopes(losses.mapo, 0.1, 0.1), [13.2916840, -12.2916840])
  near(_slopes(losses.mapo_paper, 0.1, 0.1), [1.2416681, -0.2416681], rtol=1e-4)
  other = functools.partial(losses.mapo_paper, beta=64.0)
  near(_slopes(other, 0.1, 0.1), _slopes(losses.mapo_paper, 0.1, 0.1))


@pytest.mark.parametrize("size", [1e-3, 0.1, 3.0, 30.0])
@pytest.mark.parametrize("form", FORMS)
def test_is_numpys(form, size):
  rng = np.random.default_rng(0)
  chosen = size * rng.uniform(0.5, 1.5, 12)
  # Near enough for the margin to count.
  rejected = chosen + 4e-3 * rng.normal(size=12) * min(size, 1.0)
  inputs = {"chosen_error": chosen, "rejected_error": rejected}
  reference = {"code": _code, "paper": _paper}[form]
  # Measured: 5e-5, where a margin of 1,000 g loses what float32 rounds of g.
  rtol = {"code": 2e-4, "paper": 2e-5}[form]
  assert_is_numpys(FORMS[form], reference, inputs, list(inputs), rtol)


@pytest.mark.parametrize("form", FORMS)
def test_equal_errors(form):
  x = array([0.0, 1e-6, 0.1, 1.0, 2.0, 50.0, 1e3])
  margin = {"code": 0.1, "paper": 1 / 8}[form] * np.log(2)
  np.testing.assert_allclose(FORMS[form](x, x), x + margin, rtol=1e-6)


def test_the_link_is_smooth():
  """At 0, where it is 0 / 0, and where its series ends."""
  # At scale 1 and beta 1: softplus(-(g(x) - g(1))), undone.
  pull = lambda x: losses.mapo(
    x, jnp.ones_like(x), beta=1.0, snr=1.0, scale=1.0
  )
  gain = lambda x: -jnp.log(jnp.expm1(pull(x) - x)) + _gain(1.0)
  x = array([0.0, 1e-7, 1e-3, 0.999999, 1.0, 1.000001, 1.1, 1.5])
  exact = np.ones(8)
  exact[1:] = _gain(np.asarray(x[1:], np.float64))
  # Measured: 2e-7; without its last term the series is off by 8e-7.
  np.testing.assert_allclose(gain(x), exact, atol=4e-7)
  slopes = jax.vmap(jax.grad(gain))(x)
  y = np.asarray(x[2:], np.float64)
  exact = (np.expm1(y) - y * np.exp(y)) / np.expm1(y) ** 2
  np.testing.assert_allclose(slopes[:2], [-0.5, -0.5], atol=2e-5)
  np.testing.assert_allclose(slopes[2:], exact, atol=2e-5)


def test_margins_of_small_errors_keep_their_digits():
  """Where exp(x) - 1 in float32 is off by up to 0.3 after the scale."""
  rng = np.random.default_rng(1)
  chosen, rejected = array(rng.uniform(1e-3, 5e-3, (2, 100)))
  margin = lambda *x: jnp.log(jnp.expm1(losses.mapo(*x, beta=1.0) - x[0]))
  exact = [_gain(0.5 * np.asarray(x, np.float64)) for x in (chosen, rejected)]
  exact = 1000 * (exact[0] - exact[1])
  # Measured: 3e-7.
  np.testing.assert_allclose(-margin(chosen, rejected), exact, atol=1e-5)


jitted = {name: jax.jit(loss) for name, loss in FORMS.items()}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(errors, errors)
def test_swapping_a_pair(chosen, rejected):
  """The margin changes its sign: -log σ(m) grows by m."""
  a, b = array([chosen]), array([rejected])
  margin = _gain(0.5 * np.float64(chosen)) - _gain(0.5 * np.float64(rejected))
  swap = jitted["code"](b, a) - jitted["code"](a, b)
  expected = rejected - chosen + 0.1 * 1000 * margin
  np.testing.assert_allclose(swap, [expected], rtol=1e-5, atol=2e-5)
  margin = _gain(np.float64(chosen)) - _gain(np.float64(rejected))
  swap = jitted["paper"](b, a) - jitted["paper"](a, b)
  np.testing.assert_allclose(
    swap, [rejected - chosen + margin], rtol=1e-5, atol=2e-6
  )
