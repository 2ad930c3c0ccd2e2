"""Pairwise losses against papers' numbers and torch's values and gradients."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import numpy as np
import pytest

from jaxpref import losses
from jaxpref.types import sum_valid

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "losses.json"
CASES = json.loads(GOLDEN.read_text())
PAIRWISE = {"dpo": losses.dpo, "ipo": losses.ipo}
WRAPS = {"eager": lambda f: f, "jit": jax.jit, "vmap": jax.vmap}


def _array(values):
  return jnp.asarray(values, jnp.float32)


# Two pairs of known token log-probs, evaluated with TRL in float64: sums over
# 3 and 4, and 4 and 2 tokens.
CHOSEN, REJECTED = _array([0.3, -0.2]), _array([-2.4, 1.5])
CHOSEN_MEAN = CHOSEN / _array([3, 4])
REJECTED_MEAN = REJECTED / _array([4, 2])


@pytest.mark.parametrize(
  ("label_smoothing", "expected"),
  [(0.0, [0.5672321, 0.7817553]), (0.1, [0.5942321, 0.7647553])],
)
def test_dpo_of_two_known_pairs(label_smoothing, expected):
  loss = losses.dpo(CHOSEN, REJECTED, beta=0.1, label_smoothing=label_smoothing)
  np.testing.assert_allclose(loss, expected, atol=1e-6)


def test_ipo_of_two_known_pairs():
  loss = losses.ipo(CHOSEN_MEAN, REJECTED_MEAN, beta=0.1)
  np.testing.assert_allclose(loss, [18.49, 33.64], rtol=1e-6)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(
  "case",
  CASES,
  ids=[f"{c['name']}{list(c['options'].values())}" for c in CASES],
)
def test_torch_values_and_gradients(case, wrap):
  loss = functools.partial(PAIRWISE[case["name"]], **case["options"])
  chosen, rejected = map(_array, case["inputs"].values())
  values = wrap(loss)(chosen, rejected)
  assert values.dtype == jnp.float32
  # Measured: 2e-7 of the value, 2e-7 of the gradient.
  np.testing.assert_allclose(values, case["loss"], rtol=2e-6)
  total = lambda *pair: jnp.sum(wrap(loss)(*pair))
  grads = jax.grad(total, argnums=(0, 1))(chosen, rejected)
  for ours, theirs in zip(grads, case["grads"].values(), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)


def test_no_ratio_gives_the_value_where_both_models_agree():
  zero = jnp.zeros(3)
  ln2 = np.full(3, np.log(2))
  np.testing.assert_allclose(losses.dpo(zero, zero, beta=0.7), ln2, rtol=1e-7)
  np.testing.assert_allclose(
    losses.ipo(zero, zero, beta=0.5), np.ones(3), rtol=1e-7
  )


def test_swapping_a_pair():
  """dpo: -log σ(m) becomes -log σ(-m), m larger; ipo: (d - t)² - (d + t)²."""
  forward = losses.dpo(CHOSEN, REJECTED, beta=0.1)
  backward = losses.dpo(REJECTED, CHOSEN, beta=0.1)
  margin = 0.1 * (CHOSEN - REJECTED)
  np.testing.assert_allclose(backward - forward, margin, atol=1e-6)
  # With half the labels backwards it would not matter which is which.
  mixed = losses.dpo(CHOSEN, REJECTED, beta=0.1, label_smoothing=0.499999)
  np.testing.assert_allclose(mixed, (forward + backward) / 2, atol=1e-5)
  backward = losses.ipo(REJECTED_MEAN, CHOSEN_MEAN, beta=0.1)
  forward = losses.ipo(CHOSEN_MEAN, REJECTED_MEAN, beta=0.1)
  difference = 4 * (CHOSEN_MEAN - REJECTED_MEAN) * 5
  np.testing.assert_allclose(backward - forward, difference, rtol=1e-5)


@pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE)
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_far_apart_models_stay_finite(loss, beta):
  chosen = _array([1e4, -1e4, 1e4, -1e4])
  rejected = _array([-1e4, 1e4, 1e4, -1e4])
  total = lambda *pair: jnp.sum(loss(*pair, beta=beta))
  values, grads = jax.value_and_grad(total, argnums=(0, 1))(chosen, rejected)
  assert np.isfinite(values)
  assert np.isfinite(grads).all()
  assert grads[0][1] < 0 < grads[1][1]  # a lost pair still pulls


@pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE)
def test_hyper_parameters_of_any_kind(loss):
  expected = loss(CHOSEN, REJECTED, beta=2.0)
  for beta in (2, np.float32(2), np.float64(2), np.int64(2), jnp.float32(2)):
    values = loss(CHOSEN, REJECTED, beta=beta)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, expected)
  traced = jax.jit(lambda beta: loss(CHOSEN, REJECTED, beta=beta))(2.0)
  np.testing.assert_allclose(traced, expected, rtol=1e-6)
  slope = jax.grad(lambda b: jnp.sum(loss(CHOSEN, REJECTED, beta=b)))(2.0)
  assert np.isfinite(slope)
  assert slope != 0


def test_label_smoothing_may_be_traced():
  smooth = lambda s: losses.dpo(CHOSEN, REJECTED, beta=0.1, label_smoothing=s)
  np.testing.assert_allclose(jax.jit(smooth)(0.1), smooth(0.1), rtol=1e-6)


@pytest.mark.parametrize("bad", [-0.1, 0.5, 1, float("nan")])
def test_label_smoothing_out_of_range(bad):
  with pytest.raises(ValueError, match=r"label_smoothing .* below 0\.5"):
    losses.dpo(CHOSEN, REJECTED, beta=0.1, label_smoothing=bad)


@pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE)
@pytest.mark.parametrize(
  "other",
  [
    REJECTED.astype(jnp.bfloat16),
    REJECTED.astype(jnp.float16),
    REJECTED[:, None],
    REJECTED[:1],
    REJECTED[0],
    jnp.array([1, 2]),
  ],
  ids=["bfloat16", "float16", "[P, 1]", "[1]", "scalar", "int32"],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_other_shapes_and_dtypes_are_refused(loss, other, wrap):
  """Broadcasting [P] with [P, 1] would give [P, P], and no error."""
  with pytest.raises(TypeCheckError):
    wrap(functools.partial(loss, beta=0.1))(CHOSEN, other)


def test_any_number_of_leading_dimensions():
  grid = jnp.arange(6.0).reshape(2, 3)
  values = losses.dpo(grid, -grid, beta=0.1)
  flat = losses.dpo(grid.ravel(), -grid.ravel(), beta=0.1)
  np.testing.assert_array_equal(values.ravel(), flat)


@pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE)
def test_nan_in_padding_is_harmless(loss):
  """To the sum, and to the gradient of everything that is not padding."""
  valid = jnp.array([True, False, True, False])
  chosen = _array([0.3, np.nan, -0.2, np.inf])
  rejected = _array([-2.4, 1.0, 1.5, np.nan])

  def total(chosen, rejected, valid):
    return sum_valid(loss(chosen, rejected, beta=0.1), valid).total

  both = jax.value_and_grad(total, argnums=(0, 1))
  value, grads = both(chosen, rejected, valid)
  real = valid.nonzero()[0]
  expected, real_grads = both(CHOSEN, REJECTED, jnp.array([True, True]))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for padded, alone in zip(grads, real_grads, strict=True):
    np.testing.assert_allclose(padded[real], alone, rtol=1e-6)
