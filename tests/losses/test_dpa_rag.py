"""The three losses of a reranker against papers' numbers, torch and NumPy."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .samples import assert_examples_run, assert_is_numpys, close

VALUES = jnp.array([[1.2, 0.7, -0.1, -0.9]])
SCORES = jnp.array([[4.0, 3.0, 2.0, 1.0]])
EMBEDDING = jnp.array(
  [[[1, 0.2, 0], [0.9, 0.1, 0.3], [0.1, 1, 0.2], [-0.2, 0.8, 0.5]]]
)
LABEL = jnp.array([[1, 1, 0, 0]])
ALL = jnp.ones((1, 4), bool)
GRADIENTS = jnp.array([[1, 0, 2], [0.5, -1, 0], [-1, 1, 1]])


def _pairs(*ranked):
  """The pair-wise term alone."""
  return losses.all_pairs_mean(*ranked, beta=1.0)


def reference_pairs(values, scores, valid):
  means = []
  for row in zip(values, scores, valid, strict=True):
    items = [(v, s) for v, s, here in zip(*row, strict=True) if here]
    each = [
      np.logaddexp(0, b - a)
      for (a, better), (b, worse) in itertools.product(items, items)
      if better > worse
    ]
    means.append(np.mean(each) if each else 0.0)
  return np.array(means)


def reference_contrast(embedding, label, valid, *, temperature):
  out = []
  for x, classes, here in zip(embedding, label, valid, strict=True):
    x, classes = x[here], classes[here]
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    similarity = unit @ unit.T / temperature
    anchors = []
    for i in range(len(x)):
      others = [j for j in range(len(x)) if j != i]
      same = [similarity[i, j] for j in others if classes[j] == classes[i]]
      if same:
        total = np.log(sum(np.exp(similarity[i, j]) for j in others))
        anchors.append(np.mean(same) - total)
    out.append(-np.mean(anchors) if anchors else 0.0)
  return np.array(out)


def test_the_example_of_the_weights_runs():
  assert_examples_run(losses.min_norm_weights)


def test_point_wise_of_known_documents():
  """Cross-entropy of two outputs is that of their difference."""
  z = jnp.array([[0.2, 1.1], [0.5, -0.3]])
  loss = losses.reward_bce(z[:, 1] - z[:, 0], jnp.array([True, False]))
  close(jnp.mean(loss), 0.35612727)


def test_pair_wise_of_known_documents():
  close(_pairs(VALUES, SCORES, ALL), [0.29278451])
  pairs = [
    0.47407698,
    0.24100845,
    0.11551952,
    0.37110067,
    0.18390074,
    0.37110067,
  ]
  for (i, j), expected in zip(
    itertools.combinations(range(4), 2), pairs, strict=True
  ):
    two = jnp.array([[i, j]])
    pick = lambda x, two=two: jnp.take_along_axis(x, two, axis=1)
    close(_pairs(*map(pick, (VALUES, SCORES, ALL))), [expected])


@pytest.mark.parametrize(
  ("temperature", "expected"), [(0.07, 1.10469790e-4), (0.5, 0.36110165)]
)
def test_contrastive_of_known_embeddings(temperature, expected):
  loss = losses.supervised_contrastive(
    EMBEDDING, LABEL, ALL, temperature=temperature
  )
  # At 0.07 the loss is 1e-4 of terms of 14, of which float32 keeps 1e-6.
  close(loss, [expected], atol=1e-6)


def test_weights_of_known_gradients():
  products = GRADIENTS @ GRADIENTS.T
  close(products, [[5, 0.5, 1], [0.5, 1.25, -1.5], [1, -1.5, 3]])
  weights = losses.min_norm_weights(products)
  close(weights, [0, 0.62068966, 0.37931034], atol=1e-6)
  close(weights @ products @ weights, 0.20689655)
  each = jnp.array([0.35612727, 0.29278451, 1.10469790e-4])
  close(weights @ each, 0.18177022, atol=1e-6)
  two = losses.min_norm_weights(products[:2, :2])
  close(two[0], 0.14285714)


def test_the_three_together():
  reward, desirable = jnp.array([0.9]), jnp.array([True])
  weights = {"point_weight": 0.5, "pair_weight": 0.62, "contrast_weight": 0.38}
  loss = losses.dpa_rag(
    reward,
    desirable,
    VALUES,
    SCORES,
    ALL,
    EMBEDDING,
    LABEL,
    temperature=0.5,
    **weights,
  )
  point = np.log1p(np.exp(-0.9))
  close(loss, [0.5 * point + 0.62 * 0.29278451 + 0.38 * 0.36110165])


@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients(seed):
  rng = np.random.default_rng(seed)
  valid = rng.integers(0, 4, (4, 5)) > 0
  valid[0] = [True, False, False, False, False]
  ranked = {
    "values": rng.normal(scale=2, size=(4, 5)),
    "scores": rng.integers(0, 3, (4, 5)) * 1.0,  # some are equal
    "valid": valid,
  }
  assert_is_numpys(_pairs, reference_pairs, ranked, by=["values"])
  embedded = {
    "embedding": rng.normal(size=(4, 5, 3)),
    "label": rng.integers(0, 2, (4, 5)).astype(np.int32),
    "valid": valid,
  }
  assert_is_numpys(
    losses.supervised_contrastive,
    reference_contrast,
    embedded,
    temperature=0.5,
  )


@pytest.mark.parametrize("losses_of_each", [1, 2, 3, 4])
def test_the_shortest_gradient_of_all_on_a_grid(losses_of_each):
  rng = np.random.default_rng(losses_of_each)
  gradients = rng.normal(size=(6, losses_of_each, 5))
  gradients[0] *= 1e3  # of any length
  products = gradients @ gradients.swapaxes(-1, -2)
  weights = np.asarray(
    jax.jit(losses.min_norm_weights)(jnp.asarray(products, jnp.float32)),
    np.float64,
  )
  assert (weights >= 0).all()
  close(weights.sum(-1), np.ones(6), rtol=1e-6)
  ours = np.einsum("rk,rkl,rl->r", weights, products, weights)
  steps = np.array(
    [
      x
      for x in itertools.product(range(13), repeat=losses_of_each)
      if sum(x) == 12
    ]
  )
  grid = np.einsum("gk,rkl,gl->rg", steps / 12, products, steps / 12)
  assert (ours <= grid.min(-1) * (1 + 1e-5)).all()
  shortest = np.min(np.linalg.norm(gradients, axis=-1), axis=-1)
  assert (np.sqrt(ours) <= shortest * (1 + 1e-5)).all()


def test_weights_of_gradients_that_depend_on_each_other():
  """Two that are one: any share of them is as short; none at all: any."""
  one = jnp.array([1.0, 2.0])
  same = jnp.stack([one, one, -3 * one])
  weights = losses.min_norm_weights(same @ same.T)
  close(weights @ same, np.zeros(2), atol=1e-6)
  close(losses.min_norm_weights(jnp.zeros((3, 3))).sum(), 1.0)


def test_known_constants():
  zero = jnp.zeros((2, 4))
  scores = jnp.tile(SCORES, (2, 1))
  close(_pairs(zero, scores, zero == 0), np.full(2, np.log(2)))
  close(_pairs(scores, zero, zero == 0), np.zeros(2))
  same = jnp.ones((1, 4, 3))
  close(losses.supervised_contrastive(same, LABEL, ALL), [np.log(3)])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(*[st.floats(-30, 30, width=32)] * 2)
def test_two_documents_are_a_pair(a, b):
  pair = jnp.array([[a, b]], jnp.float32)
  scores = jnp.array([[1.0, 0.0]])
  loss = _pairs(pair, scores, scores >= 0)
  close(loss, losses.bradley_terry(pair[:, 0], pair[:, 1]))


@pytest.mark.parametrize("planted", [np.nan, np.inf, 1e30])
def test_padding_is_harmless(planted):
  valid = jnp.array([[True, True, False, True]])
  there = valid[..., None]

  def total(values, embedding):
    pair = _pairs(values, SCORES, valid)
    contrast = losses.supervised_contrastive(
      embedding, LABEL, valid, temperature=0.5
    )
    return jnp.sum(pair + contrast)

  both = jax.jit(jax.value_and_grad(total, (0, 1)))
  value, grads = both(
    jnp.where(valid, VALUES, planted), jnp.where(there, EMBEDDING, planted)
  )
  expected, clean = both(VALUES, EMBEDDING)
  close(value, expected)
  for ours, theirs in zip(grads, clean, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_an_embedding_of_no_length_stays_finite():
  flat = EMBEDDING.at[0, 1].set(0.0)
  total = lambda x: jnp.sum(losses.supervised_contrastive(x, LABEL, ALL))
  value, grad = jax.value_and_grad(total)(flat)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
