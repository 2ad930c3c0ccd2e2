"""Losses of single labelled responses, against TRL and known numbers."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .numeric import array, assert_close, assert_is_numpys, softplus, trl_zoo

# Four responses of known token log-probs, and two more whose responses belong
# to each other's prompts.
LOGRATIO = array([0.3, -0.2, -2.4, 1.5])
DESIRABLE = array([True, True, False, False])
VALID = array([True] * 4)
MISMATCHED = array([-6.1 + 6.4, -7.0 + 7.1])
KL = jnp.float32(0.2)
same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def test_kto_of_four_known_responses():
  kl = losses.kto_kl(MISMATCHED, array([True, True]))
  np.testing.assert_allclose(kl, 0.2, rtol=1e-5)
  values = losses.kto(LOGRATIO, DESIRABLE, kl)
  expected = [0.4975, 0.5099987, 0.4353637, 0.5324543]
  np.testing.assert_allclose(values, expected, atol=1e-6)
  np.testing.assert_allclose(jnp.mean(values), 0.4938292, atol=1e-6)
  values = losses.kto(LOGRATIO, DESIRABLE, kl, desirable_weight=1.33)
  np.testing.assert_allclose(jnp.mean(values), 0.5769478, atol=1e-6)


def test_apo_zero_of_four_known_responses():
  values = losses.apo_zero_unpaired(LOGRATIO, DESIRABLE)
  np.testing.assert_allclose(jnp.mean(values), 0.4938041, atol=1e-6)


def test_bco_of_four_known_responses():
  values = losses.bco(LOGRATIO, DESIRABLE, VALID)
  np.testing.assert_allclose(jnp.mean(values), 0.6831368, atol=1e-6)


@trl_zoo("kto", "apo_zero_unpaired")
def test_trls_values_and_gradients(case):
  def loss(logratio, desirable, mismatched_logratio):
    if case["name"] == "apo_zero_unpaired":
      return losses.apo_zero_unpaired(logratio, desirable, **case["options"])
    every = jnp.ones_like(mismatched_logratio, bool)
    kl = losses.kto_kl(mismatched_logratio, every)
    return losses.kto(logratio, desirable, kl, **case["options"])

  assert_close(loss, case["inputs"], case["loss"], case["grads"])


def test_bco_is_numpys():
  rng = np.random.default_rng(0)
  inputs = {
    "logratio": rng.normal(scale=5.0, size=12),
    "desirable": rng.random(12) < 0.4,
    "valid": np.arange(12) % 4 != 1,
  }
  kept = array(inputs["logratio"])[inputs["valid"]]
  shift = 0.3 * np.mean(np.asarray(kept, np.float64))  # a constant

  def reference(logratio, desirable, valid):
    sign = np.where(desirable, 1.0, -1.0)
    return np.where(valid, softplus(-sign * (0.3 * logratio - shift)), 0.0)

  loss = functools.partial(losses.bco, beta=0.3)
  assert_is_numpys(loss, reference, inputs, ["logratio"])


def test_bco_takes_the_batchs_mean_unlike_trl():
  """TRL 0.19 keeps a running mean, TRL 1.16 has no shift at all."""
  ours = losses.bco(LOGRATIO, DESIRABLE, VALID)
  sign = array([1.0, 1.0, -1.0, -1.0])
  shifted = softplus(-sign * (0.1 * np.asarray(LOGRATIO) + 0.02))
  np.testing.assert_allclose(ours, shifted, rtol=1e-6)
  unshifted = softplus(-sign * 0.1 * np.asarray(LOGRATIO))
  np.testing.assert_allclose(np.mean(unshifted), 0.6831859, atol=1e-6)
  assert abs(np.mean(ours) - np.mean(unshifted)) > 4e-5


def test_kl_is_no_smaller_than_zero_and_of_the_valid():
  given = array([-3.0, 1.0, np.nan])
  assert losses.kto_kl(given, array([True, True, False])) == 0.0
  assert losses.kto_kl(given, array([False, True, False])) == 1.0
  assert losses.kto_kl(given, array([False] * 3)) == 0.0


def test_no_gradient_flows_through_the_kl_or_the_shift():
  """Each response pulls by itself: the batch's statistics are constants."""
  total = lambda kl: jnp.sum(losses.kto(LOGRATIO, DESIRABLE, kl))
  assert jax.grad(total)(KL) == 0.0
  assert total(KL) != total(KL + 1)
  jacobian = jax.jacobian(losses.bco)(LOGRATIO, DESIRABLE, VALID)
  assert (np.diag(jacobian) != 0).all()
  np.testing.assert_array_equal(jacobian - np.diag(np.diag(jacobian)), 0.0)


def test_where_policy_and_reference_agree():
  zero, kl = jnp.zeros(4), jnp.float32(0.0)
  weights = {"desirable_weight": 3.0, "undesirable_weight": 2.0}
  same(losses.kto(zero, DESIRABLE, kl, **weights), [1.5, 1.5, 1.0, 1.0])
  same(losses.apo_zero_unpaired(zero, DESIRABLE), np.full(4, 0.5))
  same(losses.bco(zero, DESIRABLE, VALID), np.full(4, np.log(2)))


def test_invalid_responses_do_not_move_the_shift():
  more = jnp.concatenate([LOGRATIO, array([100.0, np.nan])])
  labels = jnp.concatenate([DESIRABLE, array([True, False])])
  valid = array([True] * 4 + [False] * 2)
  values = losses.bco(more, labels, valid)
  np.testing.assert_array_equal(values[4:], 0.0)
  same(values[:4], losses.bco(LOGRATIO, DESIRABLE, VALID), rtol=1e-6)
  none = losses.bco(LOGRATIO, DESIRABLE, ~VALID)
  np.testing.assert_array_equal(none, 0.0)


ratios = st.floats(-50, 50, width=32)
jitted = {
  name: jax.jit(losses.get(name)) for name in ("kto", "apo_zero_unpaired")
}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(ratios, ratios)
def test_turning_a_label_around(logratio, kl):
  """σ(-x) becomes σ(x), which is 1 - σ(-x)."""
  x, kl = array([logratio]), jnp.float32(kl)
  good, bad = array([True]), array([False])
  one = np.ones(1)
  same(jitted["kto"](x, good, kl) + jitted["kto"](x, bad, kl), one)
  apo = jitted["apo_zero_unpaired"]
  same(apo(x, good) + apo(x, bad), one)
  # Without a KL the two losses are the same.
  same(jitted["kto"](x, good, jnp.float32(0.0)), apo(x, good))


@pytest.mark.parametrize("loss", ["apo_zero_unpaired", "bco", "kto"])
def test_likelier_good_responses_cost_less(loss):
  inputs = {"kl": KL, "valid": VALID, "desirable": DESIRABLE}
  function = losses.get(loss)
  arrays = lambda x: [
    (inputs | {"logratio": x})[k] for k in losses.inputs(function)
  ]
  slope = jax.grad(lambda x: jnp.sum(function(*arrays(x))))(LOGRATIO)
  assert (np.sign(slope) == [-1, -1, 1, 1]).all()
