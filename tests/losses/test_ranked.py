"""Losses weighted by ranks: LiPO-λ, and RankDPO in each of its readings."""

import functools
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .numeric import array, assert_is_numpys, softplus

# Four responses with values, and scores.
VALUES = array([0.3, -0.1, 0.6, -0.7])
SCORES = array([0.9, 0.6, 0.4, 0.1])
VALID = array([True] * 4)
# Four images: shares of votes, and minus the difference of their errors.
PHI = array([1 / 15, 0.6, 0.4, 13 / 15])
IMAGES = array([0.002, -0.001, -0.0005, 0.001])
same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
images = functools.partial(losses.rank_dpo, beta=500.0)


@pytest.mark.parametrize(
  ("beta", "expected"), [(0.1, 0.6594026), (0.5, 0.6078497)]
)
def test_lipo_of_a_known_list(beta, expected):
  value = losses.lipo(VALUES, SCORES, VALID, beta=beta)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, 1.1146866980),
    ({"over_pairs": "mean"}, 0.1857811163),
    ({"log_base": 2.0}, 0.7726419419),
  ],
)
def test_rank_dpo_of_a_known_list(options, expected):
  value = images(IMAGES, PHI, VALID, **options)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_rank_dpo_where_policy_and_reference_agree():
  value = images(jnp.zeros(4), PHI, VALID)
  np.testing.assert_allclose(value, 0.9457862482, rtol=1e-6)


def test_rank_dpo_gradient_of_a_known_list():
  """By the difference of errors, which a value is the negative of."""
  slope = jax.grad(lambda s: images(-s, PHI, VALID))(-IMAGES)
  expected = [-264.3104997, 43.7053522, -58.1483046, 278.7534521]
  np.testing.assert_allclose(slope, expected, rtol=1e-5)


# In other words: pair by pair, of one list, ranks by sorting.
def _of_list(values, scores, ranks, beta, base=math.e, sign=1.0):
  total, count = 0.0, 0
  gain, discount = 2.0**scores, np.log(1.0 + ranks) / np.log(base)
  for i in range(len(values)):
    for j in range(len(values)):
      if sign * scores[i] > sign * scores[j]:
        weight = abs(gain[i] - gain[j]) * abs(1 / discount[i] - 1 / discount[j])
        total += weight * softplus(-beta * (values[i] - values[j]))
        count += 1
  return total, count


def _ranks(x):
  ranks = np.empty(len(x))
  ranks[np.argsort(-x)] = np.arange(len(x)) + 1.0
  return ranks


def _lists():
  rng = np.random.default_rng(0)
  valid = np.arange(4) < np.array([4, 4, 3, 2, 1, 0])[:, None]
  valid[1] = [True, False, True, True]
  return {
    "values": rng.normal(scale=4.0, size=(6, 4)),
    "scores": rng.random((6, 4)),
    "valid": valid,
  }


def test_lipo_is_numpys():
  def reference(values, scores, valid):
    rows = [(v[m], s[m]) for v, s, m in zip(values, scores, valid)]
    return np.array([_of_list(v, s, _ranks(v), 0.3)[0] for v, s in rows])

  loss = functools.partial(losses.lipo, beta=0.3)
  assert_is_numpys(loss, reference, _lists(), ["values"])


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"best": "lowest"},
    {"rank_by": "values"},
    {"log_base": 2.0},
    {"over_pairs": "mean"},
    {"best": "lowest", "rank_by": "values", "over_pairs": "mean"},
  ],
  ids=str,
)
def test_rank_dpo_is_numpys(options):
  sign = -1.0 if "best" in options else 1.0

  def reference(values, scores, valid):
    rows = []
    for v, s in ((v[m], s[m]) for v, s, m in zip(values, scores, valid)):
      ranks = _ranks(v if "rank_by" in options else sign * s)
      base = options.get("log_base", math.e)
      total, count = _of_list(v, s, ranks, 0.3, base, sign)
      mean = options.get("over_pairs") == "mean"
      rows.append(total / max(count, 1) if mean else total)
    return np.array(rows)

  loss = functools.partial(losses.rank_dpo, beta=0.3, **options)
  assert_is_numpys(loss, reference, _lists(), ["values"])


def _weights(loss, values, scores):
  """By the loss's slope in beta at values that stay in their order."""
  agree = loss(values * 1e-6, scores, VALID, beta=1e-6)
  return agree / np.log(2)


def test_rank_dpos_weights_are_constants_of_the_data():
  """However the policy ranks the images, each pair's weight is the same."""
  order = np.array([3, 1, 0, 2])
  weights = [
    _weights(losses.rank_dpo, x, PHI) for x in (IMAGES, IMAGES[order], -IMAGES)
  ]
  np.testing.assert_allclose(weights, [1.3644811300] * 3, rtol=1e-6)
  by_values = functools.partial(losses.rank_dpo, rank_by="values")
  weights = [
    _weights(by_values, x, PHI) for x in (IMAGES, IMAGES[order], -IMAGES)
  ]
  assert np.ptp(weights) > 0.1


@pytest.mark.parametrize("rank_by", ["scores", "values"])
def test_no_gradient_flows_through_the_weights(rank_by):
  """Nor to the scores: what is left is pairs' slopes times their weights."""
  loss = functools.partial(losses.rank_dpo, beta=1.0, rank_by=rank_by)
  slope = jax.grad(loss, argnums=1)(VALUES, SCORES, VALID)
  np.testing.assert_array_equal(slope, 0.0)
  slope = jax.grad(losses.lipo, argnums=1)(VALUES, SCORES, VALID)
  np.testing.assert_array_equal(slope, 0.0)
  ranks = _ranks(np.asarray(VALUES if rank_by == "values" else SCORES))
  gain, discount = 2.0 ** np.asarray(SCORES), 1 / np.log(1 + ranks)
  expected = np.zeros(4)
  for i in range(4):
    for j in range(i + 1, 4):  # the scores fall
      weight = abs(gain[i] - gain[j]) * abs(discount[i] - discount[j])
      pull = weight / (1 + np.exp(float(VALUES[i] - VALUES[j])))
      expected[i] -= pull
      expected[j] += pull
  same(jax.grad(loss)(VALUES, SCORES, VALID), expected)


def test_training_can_start_where_all_values_are_equal():
  """Without an order, ranks would tie and all weights be 0."""
  slope = jax.grad(losses.lipo)(jnp.zeros(4), SCORES, VALID)
  assert slope[0] < 0 < slope[3]
  # Equal values rank by scores, as RankDPO's do by default.
  value = losses.lipo(jnp.zeros(4), SCORES, VALID)
  np.testing.assert_allclose(
    value, images(jnp.zeros(4), SCORES, VALID), rtol=1e-6
  )


def test_equal_scores_are_no_pair():
  tied = array([0.5, 0.5, 0.5, 0.5])
  for loss in (losses.lipo, images):
    value, slope = jax.value_and_grad(loss)(VALUES, tied, VALID)
    assert value == 0.0
    np.testing.assert_array_equal(slope, 0.0)
  # They share a rank: 1, 1, 3 here, though the third is the second level.
  value = losses.rank_dpo(
    jnp.zeros(3), array([1.0, 1.0, 0.0]), VALID[:3], beta=1.0
  )
  weight = 1 / np.log(2) - 1 / np.log(4)
  np.testing.assert_allclose(value, 2 * weight * np.log(2), rtol=1e-6)
  mean = losses.rank_dpo(
    jnp.zeros(3), array([1.0, 1.0, 0.0]), VALID[:3], over_pairs="mean"
  )
  np.testing.assert_allclose(mean, weight * np.log(2), rtol=1e-6)


def test_equal_items_still_have_a_rank_each():
  """Of two equal in value and score, one is second and one third."""
  agree, scores = jnp.zeros(3), array([1.0, 0.0, 0.0])
  value = losses.lipo(agree, scores, VALID[:3])
  first, second, third = 1 / np.log([2.0, 3.0, 4.0])
  expected = (first - second) + (first - third)
  np.testing.assert_allclose(value, expected * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("loss", [losses.lipo, losses.rank_dpo])
def test_fewer_than_two_items_teach_nothing(loss, count):
  value, slope = jax.value_and_grad(loss)(VALUES, SCORES, jnp.arange(4) < count)
  assert value == 0.0
  np.testing.assert_array_equal(slope, 0.0)


def test_gains_of_huge_scores_are_finite():
  value = losses.lipo(VALUES[:2], array([1e4, 0.0]), VALID[:2])
  expected = 2.0**64 * (1 / np.log(2) - 1 / np.log(3)) * softplus(-0.04)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "allowed"),
  [
    ({"best": "top"}, "best is 'top'; it must be 'highest' or 'lowest'"),
    ({"rank_by": "x"}, "rank_by is 'x'; it must be 'scores' or 'values'"),
    ({"over_pairs": "max"}, "over_pairs is 'max'; it must be 'sum' or 'mean'"),
    ({"log_base": 1.0}, "log_base is 1; it must be at least 1.00001"),
  ],
)
def test_other_choices_are_refused(options, allowed):
  with pytest.raises(ValueError, match=allowed):
    losses.rank_dpo(VALUES, SCORES, VALID, **options)


@pytest.mark.parametrize(
  ("options", "allowed"),
  [
    ({"predicts": "x"}, "predicts is 'x'; it must be 'noise' or 'velocity'"),
    ({"error": "l1"}, "error is 'l1'; .* 'half_mean' or 'mean' or 'sum'"),
  ],
)
def test_other_values_are_refused(options, allowed):
  image = jnp.zeros((2, 1, 1, 1))
  with pytest.raises(ValueError, match=allowed):
    losses.rank_dpo_values(image, image, image, image, **options)


jitted = {
  "lipo": jax.jit(losses.lipo),
  "rank_dpo": jax.jit(images),
  "rank_dpo by values": jax.jit(functools.partial(images, rank_by="values")),
}
floats = st.floats(-50, 50, width=32)
few = st.sampled_from([-2.0, 0.0, 3.0])  # that tie
levels = st.sampled_from([0.0, 0.25, 0.5, 1.0])
items = st.lists(st.tuples(floats | few, levels), min_size=4, max_size=4)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(items, st.permutations(range(4)))
def test_the_order_of_items_does_not_matter(items, order):
  """Ties in values, scores and both included."""
  values, scores = array(np.array(items).T)
  order = np.array(order)
  for name, loss in jitted.items():
    moved = loss(values[order], scores[order], VALID)
    same(loss(values, scores, VALID), moved, err_msg=name)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(floats, floats, levels, levels)
def test_two_items_are_a_pair_weighted_by_its_gain(a, b, better, worse):
  better, worse = max(better, worse), min(better, worse)
  valid = VALID[:2]
  weight = (2**better - 2**worse) * (1 / np.log(2) - 1 / np.log(3))
  for name, loss in jitted.items():
    beta = 0.1 if name == "lipo" else 500.0
    dpo = losses.dpo(array([a]), array([b]), beta=beta)[0]
    value = loss(array([a, b]), array([better, worse]), valid)
    same(value, weight * dpo, err_msg=name)


def test_noise_may_be_shared():
  noise = array(np.random.default_rng(0).normal(size=(2, 3, 2, 2, 1)))
  np.testing.assert_array_equal(losses.rank_dpo_noise(noise), noise)
  shared = losses.rank_dpo_noise(noise, shared_noise=True)
  for item in range(3):
    np.testing.assert_array_equal(shared[:, item], noise[:, 0])


@pytest.mark.parametrize("predicts", ["noise", "velocity"])
@pytest.mark.parametrize("error", ["half_mean", "mean", "sum"])
def test_values_of_predictions(predicts, error):
  rng = np.random.default_rng(0)
  exact = rng.normal(size=(4, 2, 3, 4, 5, 2)).astype(np.float32)
  exact = exact.astype(np.float64)
  policy, reference, noise, latent = exact
  target = noise if predicts == "noise" else noise - latent
  errors = [((x - target) ** 2).sum((-3, -2, -1)) for x in (policy, reference)]
  scale = {"half_mean": 0.5 / 40, "mean": 1 / 40, "sum": 1.0}[error]
  values = losses.rank_dpo_values(*array(exact), predicts=predicts, error=error)
  # Measured: 4e-7.
  np.testing.assert_allclose(values, scale * (errors[1] - errors[0]), rtol=1e-5)
  # Each scale with its own beta is the same loss.
  scores, valid = array(rng.random((2, 3))), jnp.ones((2, 3), bool)
  beta = 5000.0 * (0.5 / 40 / scale)
  loss = losses.rank_dpo(values, scores, valid, beta=beta)
  plain = losses.rank_dpo_values(*array(exact), predicts=predicts)
  np.testing.assert_allclose(
    loss, losses.rank_dpo(plain, scores, valid), rtol=1e-5
  )
