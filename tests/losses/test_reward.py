"""Losses of reward models against TRL, NumPy and papers' numbers."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .samples import assert_is_numpys, close, trl_cases

CHOSEN, REJECTED = jnp.array([1.2, -0.3]), jnp.array([0.4, 0.5])
MARGIN = jnp.array([0.5, 1.0])
LOG2 = np.log(2.0)
few = settings(deadline=None, max_examples=25, derandomize=True)
rewards = st.floats(-50, 50, width=32)


def softplus(x):
  return np.logaddexp(0.0, x)


def reference_bt(chosen, rejected, *, center):
  return softplus(rejected - chosen) + center * (chosen + rejected) ** 2


def reference_margin(chosen, rejected, margin, *, center):
  return reference_bt(chosen - margin, rejected, center=0) + (
    center * (chosen + rejected) ** 2
  )


def reference_ties(chosen, rejected, preference, *, theta):
  """By probabilities, as the paper prints them."""
  a, b = np.exp(chosen), np.exp(rejected)
  first, second = a / (a + theta * b), b / (b + theta * a)
  tie = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
  lean = 2 * preference - 1
  return (
    -np.maximum(lean, 0) * np.log(first)
    - np.maximum(-lean, 0) * np.log(second)
    - (1 - np.abs(lean)) * np.log(tie)
  )


def reference_eurus(chosen, rejected, absolute):
  apart = softplus(-chosen) + softplus(rejected)
  return softplus(rejected - chosen) + absolute * apart


@pytest.mark.parametrize(
  ("chosen", "rejected", "expected"),
  [
    ([1.2, -0.3], [0.4, 0.5], [0.3711007, 1.1711007]),
    ([1.2, -0.3], [0.7, 0.4], [0.4740769842, 1.1031860489]),
    ([0.7, 0.1], [-0.2, 0.4], [0.3411538747, 0.8543552445]),
    ([1.0, 0.6], [0.2, 0.9], [0.371100666, 0.854355244]),
  ],
)
def test_bradley_terry_of_known_pairs(chosen, rejected, expected):
  loss = losses.bradley_terry(jnp.array(chosen), jnp.array(rejected))
  close(loss, expected)


def test_margin_and_centring_of_known_pairs():
  with_margin = losses.bradley_terry_margin(CHOSEN, REJECTED, MARGIN)
  close(with_margin, [0.5543552, 1.9529776])
  centred = losses.bradley_terry(CHOSEN, REJECTED, center=0.01)
  close(jnp.mean(centred), 0.7841007)
  both = losses.bradley_terry_margin(CHOSEN, REJECTED, MARGIN, center=0.01)
  close(jnp.mean(both), 1.2666664)


def test_eurus_of_known_pairs():
  both = losses.eurus(CHOSEN, REJECTED, jnp.array([True, True]))
  close(both, [1.547398386, 2.999532895])
  one = losses.eurus(CHOSEN, REJECTED, jnp.array([True, False]))
  close(jnp.mean(one), 1.359249526)


def test_pointwise_losses_of_known_responses():
  reward = jnp.concatenate([CHOSEN, REJECTED])
  desirable = jnp.array([True, True, False, False])
  close(jnp.mean(losses.reward_bce(reward, desirable)), 0.7511825)
  score = desirable.astype(jnp.float32)
  close(jnp.mean(losses.reward_mse(reward, score)), 0.535)


def test_ties_of_known_pairs():
  first = jnp.array([[1, 0.2, -0.3], [0.5, -1, 2]])
  second = jnp.array([[0, 0.4, -0.3], [1.5, -1.2, 0]])
  preference = jnp.array([[1, 0, 0.5], [0, 0.5, 0.5]])
  loss = losses.bradley_terry_ties(first, second, preference)
  close(loss[0], [1.0435917782, 1.6279954051, 0.4054651081])
  close(loss[1, :2], [1.0435917782, 0.4110237291])


def test_ties_are_the_rest_of_the_probability():
  ones = jnp.ones(3)
  preference = jnp.array([1.0, 0.0, 0.5])
  loss = losses.bradley_terry_ties(ones, 0 * ones, preference)
  probability = np.exp(-loss)
  close(probability, [0.3521874284, 0.0685334768, 0.5792790948])
  close(probability.sum(), 1.0)


@trl_cases("bradley_terry")
def test_bradley_terry_is_trls(case):
  _assert_is_trls(case, losses.bradley_terry)


@trl_cases("bradley_terry_margin")
def test_margin_is_trls(case):
  margin = jnp.array(case["margin"], jnp.float32)
  _assert_is_trls(
    case,
    lambda *pair, **options: losses.bradley_terry_margin(
      *pair, margin, **options
    ),
  )


def _assert_is_trls(case, loss):
  def total(reward):
    pair = jnp.split(reward, 2)
    return jnp.mean(loss(*pair, center=case["center"]))

  reward = jnp.array(case["reward"], jnp.float32)
  value, grad = jax.value_and_grad(total)(reward)
  # Measured: 2e-7 of the value, 3e-7 of the gradient.
  close(value, case["loss"], rtol=2e-6)
  close(grad, case["grad"], rtol=5e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
  ("name", "third", "options"),
  [
    ("bradley_terry", None, {"center": 0.02}),
    ("bradley_terry_margin", "float", {"center": 0.02}),
    ("bradley_terry_ties", "preference", {"theta": 5.0}),
    ("bradley_terry_ties", "preference", {"theta": 1.2}),
    ("eurus", "bool", {}),
  ],
)
def test_values_and_gradients_of_pairs(name, third, options, seed):
  rng = np.random.default_rng(seed)
  inputs = dict(zip("ab", rng.normal(scale=2, size=(2, 8)), strict=True))
  if third:
    inputs["c"] = {
      "float": rng.normal(size=8),
      "preference": rng.uniform(0.1, 0.9, 8),
      "bool": rng.integers(0, 2, 8) > 0,
    }[third]
  reference = {
    "bradley_terry": reference_bt,
    "bradley_terry_margin": reference_margin,
    "bradley_terry_ties": reference_ties,
    "eurus": reference_eurus,
  }[name]
  assert_is_numpys(losses.get(name), reference, inputs, **options)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_of_responses(seed):
  rng = np.random.default_rng(seed)
  reward, score = rng.normal(scale=2, size=(2, 8))
  assert_is_numpys(
    losses.reward_bce,
    lambda r, y: np.where(y, softplus(-r), softplus(r)),
    {"reward": reward, "desirable": score > 0},
  )
  assert_is_numpys(
    losses.reward_mse,
    lambda r, y: (r - y) ** 2,
    {"reward": reward, "score": score},
  )


def test_known_constants_where_rewards_are_equal():
  zero, true = jnp.zeros(2), jnp.ones(2, bool)
  close(losses.bradley_terry(zero, zero), np.full(2, LOG2))
  close(losses.bradley_terry_margin(MARGIN, zero, MARGIN), np.full(2, LOG2))
  close(losses.eurus(zero, zero, true), np.full(2, 3 * LOG2))
  close(losses.eurus(zero, zero, ~true), np.full(2, LOG2))
  close(losses.reward_bce(zero, true), np.full(2, LOG2))
  for preference, expected in [(1, 5 + 1), (0, 5 + 1), (0.5, 36 / 24)]:
    loss = losses.bradley_terry_ties(zero, zero, jnp.full(2, preference * 1.0))
    close(loss, np.full(2, np.log(expected)))


@few
@given(rewards, rewards)
def test_swapping_a_pair(a, b):
  """-log σ(d) becomes -log σ(-d), which is d more; centring stays."""
  a, b = jnp.float32(a), jnp.float32(b)
  for center in (0.0, 0.01):
    there = losses.bradley_terry(a, b, center=center)
    back = losses.bradley_terry(b, a, center=center)
    close(back - there, a - b, atol=2e-5)  # of values up to 200
  won, tie = jnp.float32(1.0), jnp.float32(0.5)
  close(
    losses.bradley_terry_ties(a, b, won),
    losses.bradley_terry_ties(b, a, 1 - won),
  )
  close(
    losses.bradley_terry_ties(a, b, tie), losses.bradley_terry_ties(b, a, tie)
  )


def test_a_tie_between_equal_rewards_has_no_gradient():
  slope = jax.grad(losses.bradley_terry_ties)
  x, tie = jnp.float32(0.7), jnp.float32(0.5)
  close(slope(x, x, tie), 0.0)
  assert slope(x + 1, x, tie) > 0.1  # and pulls unequal ones together
  assert slope(x - 1, x, tie) < -0.1


def test_few_ties_are_bradley_terry():
  """θ near 1 leaves no room for them."""
  won = jnp.ones(2)
  loss = losses.bradley_terry_ties(CHOSEN, REJECTED, won, theta=1.0001)
  close(loss, losses.bradley_terry(CHOSEN, REJECTED), rtol=2e-4)


@pytest.mark.parametrize("theta", [1.0, 0.5, -2, float("nan")])
def test_theta_out_of_range(theta):
  with pytest.raises(ValueError, match=r"theta .* at least"):
    losses.bradley_terry_ties(CHOSEN, REJECTED, MARGIN, theta=theta)


def test_centring_alone_moves_the_sum():
  """And leaves the difference alone: both get the same gradient from it."""
  slope = lambda center: jax.grad(
    lambda a, b: losses.bradley_terry(a, b, center=center), (0, 1)
  )(jnp.float32(2.0), jnp.float32(1.0))
  (a, b), (c, d) = slope(0.0), slope(0.01)
  close(c - a, 0.06, atol=1e-6)
  close(d - b, 0.06, atol=1e-6)
