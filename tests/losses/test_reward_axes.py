"""Reward models of several axes: missing labels, ties, weighting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .samples import assert_is_numpys, close

# Two pairs on three axes: better, worse, tie; worse, tie, and no label.
FIRST = jnp.array([[1, 0.2, -0.3], [0.5, -1, 2]])
SECOND = jnp.array([[0, 0.4, -0.3], [1.5, -1.2, 0]])
PREFERENCE = jnp.array([[1, 0, 0.5], [0, 0.5, jnp.nan]])
PRESENT = ~jnp.isnan(PREFERENCE)
PAIRS = FIRST, SECOND, PREFERENCE
LABELS = PRESENT.sum(-1)


def test_ties_of_known_pairs():
  loss = losses.bradley_terry_ties_axes(*PAIRS, PRESENT)
  one = [1.0435917782, 1.6279954051, 0.4054651081]
  two = [1.0435917782, 0.4110237291]
  close(loss, [np.mean(one), np.mean(two)])


def test_weighting_departs_from_the_authors():
  """Theirs: all labels of a batch, over all axes, also those without one."""
  loss = losses.bradley_terry_ties_axes(*PAIRS, PRESENT)
  close(jnp.sum(loss * LABELS) / PRESENT.size, 0.7552779665)  # their code
  close(jnp.sum(loss * LABELS) / LABELS.sum(), 0.9063335597)  # by label
  close(jnp.mean(loss), 0.8764958)  # ours, by pair: 2.6293 / 3 and 1.4546 / 2


def test_wins_alone_of_known_pairs():
  won = PRESENT & (PREFERENCE != 0.5)
  for margin, expected in [(0.0, 0.2041103741), (0.57, 0.3162217525)]:
    loss = losses.bradley_terry_axes(*PAIRS, won, margin=margin)
    close(jnp.sum(loss * won.sum(-1)) / won.size, expected)


def _reference(axis):
  """`axis` of each entry, averaged by a loop over the labels there are."""

  def reference(*arrays, **options):
    *arrays, present = arrays
    means = []
    for *row, here in zip(*arrays, present, strict=True):
      each = [
        axis(*entry, **options)
        for *entry, labelled in zip(*row, here, strict=True)
        if labelled
      ]
      means.append(np.mean(each) if each else 0.0)
    return np.array(means)

  return reference


def _bt(a, b, p, margin):
  kept = np.logaddexp(0, b - a + margin)
  return p * kept + (1 - p) * np.logaddexp(0, a - b + margin)


def _ties(a, b, p, theta):
  first, second = np.logaddexp(0, np.log(theta) + np.array([b - a, a - b]))
  tie = first + second - np.log(theta**2 - 1)
  return {1.0: first, 0.0: second, 0.5: tie}[p]


@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients(seed):
  rng = np.random.default_rng(seed)
  first, second = rng.normal(scale=2, size=(2, 6, 4))
  present = rng.integers(0, 3, (6, 4)) > 0
  present[2] = False
  pair = {"first": first, "second": second}
  graded = {"preference": rng.uniform(0, 1, (6, 4)), "present": present}
  assert_is_numpys(
    losses.bradley_terry_axes, _reference(_bt), pair | graded, margin=0.3
  )
  called = {
    "preference": rng.choice([0, 0.5, 1], (6, 4)),
    "present": present,
  }
  assert_is_numpys(
    losses.bradley_terry_ties_axes,
    _reference(_ties),
    pair | called,
    by=["first", "second"],
    theta=3.0,
  )
  assert_is_numpys(
    losses.reward_mse_axes,
    _reference(lambda r, s: (r - s) ** 2),
    pair | {"present": present},
  )


@pytest.mark.parametrize(
  "name", ["bradley_terry_axes", "bradley_terry_ties_axes", "reward_mse_axes"]
)
def test_nan_without_a_label_is_harmless(name):
  loss = losses.get(name)
  arrays = PAIRS[:2] if name == "reward_mse_axes" else PAIRS
  present = PRESENT.at[0].set(False)  # a pair without any label
  plant = lambda value: [jnp.where(present, x, value) for x in arrays]
  total = lambda arrays: jnp.sum(loss(*arrays, present))
  both = jax.value_and_grad(total)
  value, grads = both(plant(jnp.nan))
  expected, clean = both(plant(0.25))
  close(value, expected)
  for ours, theirs in zip(grads, clean, strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert not ours[~present].any()
  assert loss(*plant(jnp.nan), present)[0] == 0.0


def test_one_axis_is_the_plain_loss():
  a, b = FIRST[:, :1], SECOND[:, :1]
  ones = jnp.ones_like(a)
  close(
    losses.bradley_terry_axes(a, b, ones, ones > 0),
    losses.bradley_terry(a[:, 0], b[:, 0]),
  )
  close(
    losses.bradley_terry_ties_axes(a, b, ones, ones > 0),
    losses.bradley_terry_ties(a[:, 0], b[:, 0], ones[:, 0]),
  )


def test_swapping_sides_and_labels_changes_nothing():
  for name in ("bradley_terry_axes", "bradley_terry_ties_axes"):
    loss = losses.get(name)
    swapped = loss(SECOND, FIRST, 1 - PREFERENCE, PRESENT)
    close(swapped, loss(*PAIRS, PRESENT))
    wrong = loss(SECOND, FIRST, PREFERENCE, PRESENT)
    assert np.abs(wrong - swapped).min() > 0.1
