"""Pair losses from single tokens, against TRL and known numbers."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .numeric import array, assert_close, assert_is_numpys, softplus, trl_zoo

same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def _rows(*rows):
  """Padded with NaN, and where they are not."""
  width = max(map(len, rows))
  padded = [[*row, *[np.nan] * (width - len(row))] for row in rows]
  return array(padded), array(~np.isnan(padded))


# Two pairs: token log-probs of policy and reference, log of the summed squares
# of the policy's probabilities, and KL(reference ‖ policy).
CHOSEN, CHOSEN_MASK = _rows([-0.5, -1.2, -0.3], [-0.9, -0.4, -1.1, -0.6])
CHOSEN_REF, _ = _rows([-0.7, -1.0, -0.6], [-0.8, -0.6, -0.8, -0.6])
CHOSEN_SQ, _ = _rows([-0.4, -0.9, -0.2], [-0.7, -0.3, -0.8, -0.5])
REJECTED, REJECTED_MASK = _rows([-1.5, -0.7, -2.0, -0.8], [-1.0, -1.4])
REJECTED_REF, _ = _rows([-1.0, -0.4, -0.9, -0.3], [-2.1, -1.8])
REJECTED_SQ, _ = _rows([-0.9, -0.5, -1.1, -0.6], [-1.6, -2.0])
SHARED = array(np.array([3, 2], np.int32))
RATIOS = array([0.3, -0.2]), array([-2.4, 1.5])
KLS = array([0.08, 0.08]), array([0.5, 0.37])


def _log_weights():
  chosen = losses.wpo_log_weight(CHOSEN, CHOSEN_SQ, CHOSEN_MASK)
  return chosen, losses.wpo_log_weight(REJECTED, REJECTED_SQ, REJECTED_MASK)


def test_ld_dpo_of_two_known_pairs():
  chosen, chosen_tail = losses.ld_split(
    CHOSEN - CHOSEN_REF, CHOSEN_MASK, SHARED
  )
  rejected, rejected_tail = losses.ld_split(
    REJECTED - REJECTED_REF, REJECTED_MASK, SHARED
  )
  same(chosen + 0.5 * chosen_tail, [0.3, -0.05])
  same(rejected + 0.5 * rejected_tail, [-2.15, 1.5])
  values = losses.ld_dpo(chosen, rejected, chosen_tail, rejected_tail)
  np.testing.assert_allclose(values, [0.5781316, 0.7736473], atol=1e-6)
  # With log-probs instead of ratios, policy and reference apart.
  logp = lambda x, mask: losses.ld_logp(x, mask, SHARED, alpha=0.5)
  pairs = losses.dpo(
    logp(CHOSEN, CHOSEN_MASK) - logp(CHOSEN_REF, CHOSEN_MASK),
    logp(REJECTED, REJECTED_MASK) - logp(REJECTED_REF, REJECTED_MASK),
    beta=0.1,
  )
  np.testing.assert_allclose(pairs, values, atol=1e-6)


def test_wpo_of_two_known_pairs():
  weights = losses.wpo_weight(*_log_weights(), max_weight=np.inf)
  np.testing.assert_allclose(weights, [0.5264143, 1.5295904], rtol=1e-6)
  values = losses.wpo(*RATIOS, *_log_weights(), max_weight=np.inf)
  np.testing.assert_allclose(values, [0.2985991, 1.1957655], atol=1e-6)


def test_wpo_weighs_no_more_than_1_unlike_trl():
  values = losses.wpo(*RATIOS, *_log_weights())
  np.testing.assert_allclose(values, [0.2985991, 0.7817553], atol=1e-6)
  trls = losses.wpo(*RATIOS, *_log_weights(), max_weight=np.inf)
  np.testing.assert_allclose(jnp.mean(trls), 0.7471823, atol=1e-6)
  np.testing.assert_allclose(jnp.mean(values), 0.5401772, atol=1e-6)


def test_wpo_unaligned():
  """With no squares, a weight is the average likelihood itself."""
  log_weights = [
    losses.wpo_log_weight(x, jnp.zeros_like(x), mask)
    for x, mask in ((CHOSEN, CHOSEN_MASK), (REJECTED, REJECTED_MASK))
  ]
  values = losses.wpo(*RATIOS, *log_weights)
  np.testing.assert_allclose(values, [0.0834378, 0.1112235], atol=1e-6)


def test_tdpo_of_two_known_pairs():
  one = losses.tdpo1(*RATIOS, *KLS)
  np.testing.assert_allclose(one, [0.5856312, 0.7975892], atol=1e-6)
  two = losses.tdpo2(*RATIOS, *KLS)
  np.testing.assert_allclose(two, [0.5763774, 0.7896462], atol=1e-6)


def _from_tokens(loss):
  """Of arrays [side, pair, token], by a loss of what `tokens` gives."""

  def function(token_logp, ref_token_logp, token_log_sum_sq, mask):
    return loss(token_logp - ref_token_logp, token_logp, token_log_sum_sq, mask)

  return function


@trl_zoo("ld_dpo")
def test_trls_ld_dpo(case):
  def loss(token_logratio, _, __, mask):
    shared = jnp.min(jnp.sum(mask, axis=-1, dtype=jnp.int32), axis=0)
    shared = jnp.stack([shared, shared])
    (one, other), tails = losses.ld_split(token_logratio, mask, shared)
    return losses.ld_dpo(one, other, *tails, **case["options"])

  assert_close(_from_tokens(loss), case["inputs"], case["loss"], case["grads"])


@trl_zoo("wpo")
def test_trls_wpo(case):
  def loss(token_logratio, token_logp, sum_sq, mask):
    ratios = jnp.sum(jnp.where(mask, token_logratio, 0.0), axis=-1)
    weights = losses.wpo_log_weight(token_logp, sum_sq, mask)
    options = {"max_weight": np.inf, **case["options"]}
    return losses.wpo(*ratios, *weights, **options)

  assert_close(_from_tokens(loss), case["inputs"], case["loss"], case["grads"])


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_tdpo_is_numpys(name):
  rng = np.random.default_rng(0)
  inputs = {
    "chosen_logratio": rng.normal(scale=3.0, size=9),
    "rejected_logratio": rng.normal(scale=3.0, size=9),
    "chosen_kl": np.abs(rng.normal(scale=5.0, size=9)),
    "rejected_kl": np.abs(rng.normal(scale=5.0, size=9)),
  }
  baseline = np.asarray(array(inputs["chosen_kl"]), np.float64)

  def reference(chosen_logratio, rejected_logratio, chosen_kl, rejected_kl):
    margin = chosen_logratio - rejected_logratio
    if name == "tdpo1":
      return softplus(-0.3 * (margin - rejected_kl + chosen_kl))
    return softplus(-0.3 * (margin - 0.7 * (rejected_kl - baseline)))

  options = {"beta": 0.3} | ({"alpha": 0.7} if name == "tdpo2" else {})
  loss = functools.partial(losses.get(name), **options)
  assert_is_numpys(loss, reference, inputs, list(inputs))


def test_where_no_gradient_flows():
  """Through WPO's weight, and through what TDPO2 measures against."""
  slopes = jax.grad(lambda *x: jnp.sum(losses.wpo(*x)), (2, 3))
  for slope in slopes(*RATIOS, *_log_weights()):
    np.testing.assert_array_equal(slope, 0.0)
  slopes = jax.grad(lambda *x: jnp.sum(losses.tdpo2(*x)), (2, 3))
  chosen, rejected = slopes(*RATIOS, *KLS)
  np.testing.assert_array_equal(chosen, 0.0)
  assert (rejected > 0).all()
  slopes = jax.grad(lambda *x: jnp.sum(losses.tdpo1(*x)), (2, 3))
  chosen, rejected = slopes(*RATIOS, *KLS)
  same(chosen, -rejected)
  assert (rejected > 0).all()


def test_padding_and_empty_responses():
  logp = array([[np.nan, -1.0, -2.0, np.nan, -4.0], [np.nan] * 5])
  mask = ~jnp.isnan(logp)
  length = array(np.array([2, 0], np.int32))
  first, tail = losses.ld_split(logp, mask, length)
  np.testing.assert_array_equal(first, [-3.0, 0.0])
  np.testing.assert_array_equal(tail, [-4.0, 0.0])
  weights = losses.wpo_log_weight(logp, logp * 2, mask)
  np.testing.assert_allclose(weights, [7 / 3, 0.0], rtol=1e-6)
  total = lambda x: jnp.sum(losses.ld_logp(x, mask, length, alpha=0.3))
  expected = np.array([[0, 1, 1, 0, 0.3], [0] * 5], np.float32)
  np.testing.assert_array_equal(jax.grad(total)(logp), expected)


ratios = st.floats(-50, 50, width=32)
jitted = {
  name: jax.jit(losses.get(name))
  for name in ("dpo", "ld_dpo", "tdpo1", "tdpo2", "wpo")
}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(ratios, ratios, ratios, ratios)
def test_their_limits_are_dpo(a, b, c, d):
  a, b, c, d = (array([x]) for x in (a, b, c, d))
  dpo = jitted["dpo"](a, b)
  same(jitted["ld_dpo"](a, b, c, d, alpha=0.0), dpo)
  same(jitted["ld_dpo"](a, b, c, d, alpha=1.0), jitted["dpo"](a + c, b + d))
  same(jitted["tdpo1"](a, b, c, c), dpo)
  same(jitted["tdpo2"](a, b, c, d, alpha=0.0), dpo)
  same(jitted["tdpo2"](a, b, c, d, alpha=1.0), jitted["tdpo1"](a, b, c, d))
  # As likely as drawn ones, and likelier than a maximum lets count.
  same(jitted["wpo"](a, b, c, -c), dpo)
  same(jitted["wpo"](a, b, abs(c), abs(d), max_weight=0.5), 0.5 * dpo)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(ratios, ratios)
def test_swapping_a_pair(a, b):
  """-log σ(m) grows by m."""
  a, b, kl = array([a]), array([b]), array([0.25])
  for name in ("ld_dpo", "tdpo1", "tdpo2"):
    swap = jitted[name](b, a, kl, kl) - jitted[name](a, b, kl, kl)
    same(swap, 0.1 * (a - b), atol=3e-6)
