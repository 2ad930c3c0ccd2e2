"""Estimates of the divergence against exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .samples import (
  MASK,
  NEW,
  REF,
  assert_examples_run,
  assert_is_numpys,
  close,
)

REFERENCES = {
  "kl_k1": lambda new, ref: new - ref,
  "kl_k2": lambda new, ref: (new - ref) ** 2 / 2,
  "kl_k3": lambda new, ref: np.exp(ref - new) - (ref - new) - 1,
}
LOGITS = jnp.array([[0.2, -0.1, 0], [1, 0, -1], [0, 0.5, 0.5]])
REF_LOGITS = jnp.array([[0, 0, 0], [0.5, 0, 0], [0, 0, 0]])


def test_examples_in_docstrings_run():
  assert_examples_run(losses.kl_k1, losses.kl_k2, losses.kl_k3, losses.kl_exact)


@pytest.mark.parametrize(
  ("name", "expected"),
  [("kl_k1", 0.1), ("kl_k2", 0.0127778), ("kl_k3", 0.0119968)],
)
def test_means_over_nine_known_tokens(name, expected):
  estimate = getattr(losses, name)(NEW, REF)[MASK]
  assert estimate.shape == (9,)
  close(jnp.mean(estimate), expected, rtol=5e-6 if name == "kl_k3" else 2e-6)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_values_and_gradients(name, size):
  rng = np.random.default_rng(3)
  new, ref = -np.abs(rng.normal(scale=size, size=(2, 8)))
  assert_is_numpys(
    getattr(losses, name), REFERENCES[name], {"new": new, "ref": ref}
  )


def test_k3_keeps_small_divergences():
  """e^d - d - 1 of float32 is noise below 1e-7; d² / 2 is not."""
  d = jnp.array([1e-2, -1e-2, 1e-3])
  close(losses.kl_k3(jnp.zeros(3), d), np.expm1(np.float64(d)) - d, atol=2e-9)
  slope = jax.vmap(jax.grad(lambda d: losses.kl_k3(jnp.zeros(()), d)))(d)
  close(slope, np.expm1(np.float64(d)), rtol=1e-6)


def test_k3_pushes_back_however_far():
  far = jnp.array([-30.0, -1e4])
  slope = jax.vmap(jax.grad(lambda x: losses.kl_k3(x, jnp.zeros(()))))(far)
  close(slope, np.full(2, 1 - np.exp(20.0)))


def test_exact_divergence_of_known_logits():
  logp = jax.nn.log_softmax(LOGITS)
  exact = losses.kl_exact(logp, jax.nn.log_softmax(REF_LOGITS))
  close(exact, [0.00797668, 0.12936071, 0.02424393], atol=1e-8)


def test_exact_divergence_through_the_softmax():
  def softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))

  def reference(logits, ref_logits):
    logp, ref = softmax(logits), softmax(ref_logits)
    return np.sum(np.exp(logp) * (logp - ref), axis=-1)

  def ours(logits, ref_logits):
    return losses.kl_exact(
      jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    )

  rng = np.random.default_rng(4)
  logits, ref = rng.normal(size=(2, 3, 5))
  assert_is_numpys(ours, reference, {"logits": logits, "ref": ref})


def test_estimates_average_to_the_exact_divergence():
  """Over all tokens, weighted by π; gradients too, but for k1 and k3."""
  logits, ref = LOGITS[1], jax.nn.log_softmax(REF_LOGITS[1])

  def average(name, logits):
    logp = jax.nn.log_softmax(logits)
    sampled = jax.lax.stop_gradient(jnp.exp(logp))
    return jnp.sum(sampled * getattr(losses, name)(logp, ref))

  def exact(logits, flipped=False):
    logp = jax.nn.log_softmax(logits)
    return losses.kl_exact(*((ref, logp) if flipped else (logp, ref)))

  close(average("kl_k1", logits), exact(logits), atol=1e-7)
  close(average("kl_k3", logits), exact(logits), atol=1e-7)
  slope = lambda name: jax.grad(lambda x: average(name, x))(logits)
  close(slope("kl_k1"), np.zeros(3), atol=1e-7)
  close(slope("kl_k2"), jax.grad(exact)(logits), atol=1e-7)
  close(slope("kl_k3"), jax.grad(lambda x: exact(x, True))(logits), atol=1e-7)


def test_tokens_that_cannot_be_chosen_count_nothing():
  logp = jnp.log(jnp.array([0.9, 0.1, 0.0]))
  ref = jnp.log(jnp.array([0.5, 0.5, 0.0]))
  value, slope = jax.value_and_grad(losses.kl_exact)(logp, ref)
  close(value, losses.kl_exact(logp[:2], ref[:2]))
  assert np.isfinite(slope).all()
