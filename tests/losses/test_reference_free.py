"""Pair losses without a reference, against TRL and known numbers."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .numeric import array, assert_close, assert_is_numpys, trl_whole, trl_zoo

# Two pairs of known token log-probs: sums, and averages over 3 and 4, and 4
# and 2 tokens.
CHOSEN, REJECTED = array([-2.0, -3.0]), array([-5.0, -2.4])
CHOSEN_MEAN, REJECTED_MEAN = array([-2 / 3, -0.75]), array([-1.25, -1.2])
NLL = 5 / 7  # of the chosen responses' tokens
logps = st.floats(-50, -0.0625, width=32)
same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("beta", "gamma", "expected"),
  [(2.0, 1.0, [0.6132821, 0.7443967]), (2.5, 0.75, [0.4004286, 0.5231233])],
)
def test_simpo_of_two_known_pairs(beta, gamma, expected):
  values = losses.simpo(CHOSEN_MEAN, REJECTED_MEAN, beta=beta, gamma=gamma)
  np.testing.assert_allclose(values, expected, atol=1e-6)


def test_cpo_of_two_known_pairs():
  values = losses.cpo(CHOSEN, REJECTED)
  np.testing.assert_allclose(values, [0.5543552, 0.7235971], atol=1e-6)
  whole = jnp.mean(values) + losses.spec(losses.cpo).nll_weight * NLL
  np.testing.assert_allclose(whole, 1.3532619, atol=1e-6)


def test_orpo_of_two_known_pairs():
  values = losses.orpo(CHOSEN_MEAN, REJECTED_MEAN)
  np.testing.assert_allclose(values, [0.03224919, 0.03930154], atol=1e-7)
  whole = jnp.mean(values) + losses.spec(losses.orpo).nll_weight * NLL
  np.testing.assert_allclose(whole, 0.7500611, atol=1e-6)


def test_slic_hf_of_two_known_pairs():
  values = losses.slic_hf(CHOSEN, REJECTED)
  np.testing.assert_allclose(values, [0.2, 1.9], rtol=1e-6)


@trl_zoo("simpo", "cpo", "orpo")
def test_trls_values_and_gradients(case):
  loss = functools.partial(losses.get(case["name"]), **case["options"])
  assert_close(loss, case["inputs"], case["loss"], case["grads"])


def test_slic_hf_is_numpys():
  def reference(chosen_logp, rejected_logp):
    hinge = np.maximum(0.0, 2.0 - chosen_logp + rejected_logp)
    return hinge - 0.3 * chosen_logp

  rng = np.random.default_rng(0)
  inputs = {
    "chosen_logp": -3 * np.abs(rng.normal(size=12)),
    "rejected_logp": -3 * np.abs(rng.normal(size=12)),
  }
  loss = functools.partial(losses.slic_hf, delta=2.0, regularization=0.3)
  assert_is_numpys(loss, reference, inputs, list(inputs))


def _of_whole(name, nll_mask, **options):
  """Our loss of TRL's batch, with the likelihood of the tokens of a mask."""
  case = trl_whole(name)
  logp, mask = case["token_logp"], case["mask"]
  sums = np.where(mask, logp, 0.0).sum(-1)
  if name != "cpo":
    sums = sums / mask.sum(-1)
  loss = losses.get(name)
  chosen, rejected = array(sums).reshape(2, -1)
  pairs = float(jnp.mean(loss(chosen, rejected, **options)))
  half = len(logp) // 2
  nll = -logp[:half][case[nll_mask][:half]].mean()
  weight = losses.spec(loss).nll_weight
  return pairs + weight * nll, pairs, nll, float(case["loss"])


def test_cpo_with_its_likelihood_is_trls():
  ours, _, _, trls = _of_whole("cpo", "mask", beta=0.1)
  np.testing.assert_allclose(ours, trls, rtol=1e-6)


def test_orpo_counts_no_prompt_unlike_trl():
  ours, pairs, nll, trls = _of_whole("orpo", "mask", beta=0.1)
  with_prompt, _, _, _ = _of_whole("orpo", "mask_with_prompt", beta=0.1)
  np.testing.assert_allclose(with_prompt, trls, rtol=1e-6)
  np.testing.assert_allclose(ours, pairs + nll, rtol=1e-6)
  assert abs(ours - trls) > 1e-2


def test_simpo_has_no_likelihood_unlike_trls_default():
  ours, pairs, nll, trls = _of_whole("simpo", "mask", beta=0.1, gamma=0.5)
  assert ours == pairs
  np.testing.assert_allclose(pairs + nll, trls, rtol=1e-6)  # cpo_alpha = 1
  assert nll > 0.1


def test_equal_likelihoods():
  x = array([-0.1, -1.0, -20.0])
  ln2 = np.full(3, np.log(2))
  same(losses.cpo(x, x), ln2)
  same(losses.orpo(x, x), 0.1 * ln2)
  same(losses.simpo(x, x, gamma=0.7), np.full(3, np.log1p(np.exp(0.7))))
  same(losses.slic_hf(x, x, delta=3.0, regularization=0.0), np.full(3, 3.0))


jitted = {name: jax.jit(losses.get(name)) for name in ("simpo", "cpo", "orpo")}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(logps, logps)
def test_swapping_a_pair(chosen, rejected):
  """-log σ(m) becomes -log σ(-m): larger by the margin m."""
  a, b = array([chosen]), array([rejected])
  both = lambda name, **options: (
    jitted[name](b, a, **options) - jitted[name](a, b, **options)
  )
  same(both("cpo", beta=0.1), 0.1 * (a - b), atol=2e-6)
  same(both("simpo", gamma=0.0), 2.0 * (a - b), atol=2e-5)
  odds = np.float64([chosen, rejected])
  odds = odds - np.log(-np.expm1(odds))
  same(both("orpo", beta=1.0), odds[:1] - odds[1:], atol=2e-5)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(logps, logps)
def test_without_gamma_simpo_is_cpo(chosen, rejected):
  a, b = array([chosen]), array([rejected])
  same(
    jitted["simpo"](a, b, beta=0.3, gamma=0.0), jitted["cpo"](a, b, beta=0.3)
  )


def test_smoothing_mixes_both_labels():
  for loss in (losses.cpo, functools.partial(losses.simpo, gamma=0.0)):
    one, other = loss(CHOSEN, REJECTED), loss(REJECTED, CHOSEN)
    same(loss(CHOSEN, REJECTED, label_smoothing=0.2), 0.8 * one + 0.2 * other)
    with pytest.raises(ValueError, match=r"label_smoothing .* below 0\.5"):
      loss(CHOSEN, REJECTED, label_smoothing=0.5)


def test_slic_hf_lets_go_of_pairs_told_apart():
  told, wrong = array([-1.0]), array([-9.0])
  slopes = jax.grad(lambda *x: jnp.sum(losses.slic_hf(*x)), (0, 1))
  same(slopes(told, wrong), [[-0.1], [0.0]])
  same(slopes(wrong, told), [[-1.1], [1.0]])


def test_orpo_of_certain_responses():
  """Odds of a probability of 1 are infinite."""
  total = lambda *x: jnp.sum(losses.orpo(*x, beta=1.0))
  for a, b in [(0.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (-1e-7, -1e4)]:
    value, grads = jax.value_and_grad(total, (0, 1))(array([a]), array([b]))
    assert np.isfinite(value)
    assert np.isfinite(grads).all()
  # log odds of 1 - 1e-6 are 13.8.
  np.testing.assert_allclose(
    total(array([-50.0]), array([0.0])), 63.8, atol=0.1
  )
