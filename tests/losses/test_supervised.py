"""The likelihood losses, against torch's cross-entropy and known numbers."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import numpy as np
import pytest
import torch

from jaxpref import losses

from .numeric import array, assert_is_numpys

# A good sequence of three tokens and another of two.
LOGP = -array([[1.0, 0.5, 0.25], [2.0, 1.0, np.nan]])
MASK = array([[True, True, True], [True, True, False]])
GOOD = array([True, False])


def test_sft_is_torchs_cross_entropy():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(7, 11)).astype(np.float32)
  target = rng.integers(11, size=7)
  theirs = torch.nn.functional.cross_entropy(
    torch.tensor(logits), torch.tensor(target), reduction="none"
  )
  logp = jax.nn.log_softmax(jnp.asarray(logits))[jnp.arange(7), target]
  # Measured: 2e-7.
  np.testing.assert_allclose(losses.sft(logp), theirs, rtol=2e-6)


def test_sft_is_unreduced():
  logp = -jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(losses.sft(logp), -logp)
  np.testing.assert_array_equal(
    jax.grad(lambda x: jnp.sum(losses.sft(x)))(logp), -np.ones((2, 3))
  )


def test_sft_refuses_bfloat16():
  with pytest.raises(TypeCheckError):
    losses.sft(jnp.zeros(3, jnp.bfloat16))


@pytest.mark.parametrize(
  ("weight", "expected"),
  [
    (0.1, 0.640625),
    (np.exp(-0.9), 0.778809461),  # exp((r - 1) / beta) with beta 1
    (np.exp(-0.9 / 0.390865034), 0.640625),  # the beta that 0.1 is
    (1.0, 4.75 / 5),  # of which nothing is left but the mean
  ],
)
def test_c_rlft_of_two_known_sequences(weight, expected):
  values = losses.c_rlft(LOGP, GOOD, MASK, undesirable_weight=weight)
  assert values[1, 2] == 0.0
  np.testing.assert_allclose(jnp.mean(values[MASK]), expected, rtol=1e-6)


def test_c_rlft_of_two_known_sequences_by_sequence():
  values = losses.c_rlft_sequence(LOGP, GOOD, MASK)
  np.testing.assert_allclose(jnp.mean(values), 0.666666667, rtol=1e-6)


@pytest.mark.parametrize("name", ["c_rlft", "c_rlft_sequence"])
def test_c_rlft_of_one_source_is_the_cross_entropy(name):
  """However little that source weighs: only the ratio matters."""
  loss = functools.partial(losses.get(name), LOGP)
  every = np.ones(2, bool)
  good, other = loss(array(every), MASK), loss(array(~every), MASK)
  expected = np.where(MASK, -LOGP, 0.0)
  if name == "c_rlft_sequence":
    expected = expected.sum(-1) / [3, 2]
  np.testing.assert_allclose(good, expected, rtol=1e-6)
  np.testing.assert_allclose(other, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["c_rlft", "c_rlft_sequence"])
def test_c_rlft_is_numpys(name):
  """The weighted sum over the weights' sum, loop by loop."""

  def reference(token_logp, desirable, mask):
    weighted, weights = np.zeros(mask.shape), 0.0
    for row, col in zip(*mask.nonzero()):
      weight = 1.0 if desirable[row] else 0.25
      if name == "c_rlft_sequence":
        weight /= mask[row].sum()
      weighted[row, col] = -weight * token_logp[row, col]
      weights += weight
    if name == "c_rlft":
      return weighted / weights * mask.sum()
    return weighted.sum(-1) / weights * mask.any(-1).sum()

  rng = np.random.default_rng(0)
  inputs = {
    "token_logp": -np.abs(rng.normal(size=(5, 4))),
    "desirable": np.array([True, False, False, True, False]),
    "mask": np.arange(4) < np.array([4, 1, 3, 2, 0])[:, None],
  }
  loss = functools.partial(losses.get(name), undesirable_weight=0.25)
  assert_is_numpys(loss, reference, inputs, ["token_logp"])


@pytest.mark.parametrize("name", ["c_rlft", "c_rlft_sequence"])
def test_c_rlft_without_a_response_is_zero(name):
  loss = losses.get(name)
  nothing = jnp.zeros_like(MASK)
  total = lambda x: jnp.sum(loss(x, GOOD, nothing))
  value, grad = jax.value_and_grad(total)(LOGP)
  assert value == 0.0
  np.testing.assert_array_equal(grad, 0.0)
