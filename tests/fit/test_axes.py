"""The objective of several rewards against arithmetic, axis by axis."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config, losses
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.loss import rated_axes
from jaxpref.fit.reward import reward_objective, score_rewards
from jaxpref.models.build import define, init_params
from jaxpref.pair import with_pairs

AXES = ("a", "b", "c")
NAN = math.nan


@pytest.fixture(scope="module")
def rating(definition):
  return define(definition.config, dtype="float32", rewards=AXES)


@pytest.fixture(scope="module")
def params(rating):
  made = init_params(rating, jax.random.key(0))
  kernel = jax.random.normal(jax.random.key(1), (32, 3)) / 5
  return {**made, "score": {"kernel": kernel}}


@pytest.fixture(scope="module")
def data(make_prepared):
  """a and b disagree, b is often missing, and nothing is rated on c."""
  rng = np.random.default_rng(1)
  take = lambda n: rng.integers(1, 64, size=n).tolist()
  rated = [
    [{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": 1.0}],
    [{"a": 5.0}, {"a": 4.0}],
    [{"a": 2.0, "b": 1.0}, {"a": 2.0, "b": 3.0}],
    [{"b": 1.0}, {"a": 1.0}],
  ]
  examples = [
    (take(4), [take(3 + j) for j in range(len(each))], [], None, each)
    for each in rated
  ]
  rules = config.Pair(rule="all_pairs", ties="keep")
  return with_pairs(make_prepared(examples), rules, AXES)[0]


def _batch(data, **given):
  given = {"batch_size": 4, "rows": 2, "row_length": 64} | given
  return Steps(data, **given)[0]


def _values(rating, params, data, name, **options):
  """Terms and metrics of one micro-batch, and rewards as `data` numbers."""
  steps = Steps(data, batch_size=4, rows=2, row_length=64)
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), steps[0])
  objective = reward_objective(rating, config.Loss(name=name, options=options))
  terms, state, metrics = jax.jit(objective)(
    {"policy": params}, {}, {}, batch, jax.random.key(0)
  )
  assert state == {}
  numbers = [j for r in steps.packing(0)[0][0] for p in r for j in p.responses]
  found = np.asarray(score_rewards(rating, params, batch))
  rewards = np.zeros((len(data.label), 3), np.float32)
  rewards[numbers] = found[: len(numbers)]
  return terms, metrics, rewards


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("bradley_terry", {"center": 0.1}),
    ("bradley_terry_ties", {"theta": 3.0}),
    ("bradley_terry_axes", {"margin": 0.5}),
    ("bradley_terry_ties_axes", {}),
  ],
)
def test_a_pair_is_the_mean_of_its_axes(rating, params, data, name, options):
  terms, metrics, rewards = _values(rating, params, data, name, **options)
  kind = getattr(losses, name.removesuffix("_axes"))
  margin = options.get("margin", 0.0)
  own = {k: x for k, x in options.items() if k != "margin"}
  each = []
  right, told = np.zeros(3), np.zeros(3)
  for b, w, labels in zip(
    data.better, data.worse, data.preferences, strict=True
  ):
    axes = []
    for k, p in enumerate(labels):
      if np.isnan(p):
        continue
      x, y = (jnp.float32(rewards[j, k]) for j in (b, w))
      if "ties" in name:
        axes.append(kind(x, y, jnp.float32(p), **own))
      else:
        forth, back = kind(x - margin, y, **own), kind(y - margin, x, **own)
        axes.append(p * forth + (1 - p) * back)
      told[k] += p != 0.5
      right[k] += p != 0.5 and (x > y) == (p > 0.5)
    each.append(np.mean(axes))
  assert len(each) == 5  # three of the first prompt; of the last none
  assert told.tolist() == [4, 4, 0]
  assert terms["loss"].count == 5
  np.testing.assert_allclose(terms["loss"].total, np.sum(each), rtol=1e-5)
  for k, axis in enumerate(AXES):
    found = metrics[f"rewards/accuracies/{axis}"]
    assert (found.total, found.count) == (right[k], told[k])
  assert metrics["rewards/accuracies"].count == 5
  assert metrics["rewards/margins/c"] == (0.0, 0.0)


@pytest.mark.parametrize("name", ["reward_mse", "reward_mse_axes"])
def test_a_response_is_the_mean_of_its_scores(rating, params, data, name):
  terms, metrics, rewards = _values(rating, params, data, name)
  error = rewards - data.ratings
  rated = np.isfinite(error).any(axis=1)
  assert terms["loss"].count == rated.sum() == 9
  total = np.nanmean(error[rated] ** 2, axis=1).sum()
  np.testing.assert_allclose(terms["loss"].total, total, rtol=1e-5)
  for k, axis in enumerate(AXES):
    found = metrics[f"rewards/errors/{axis}"]
    assert found.count == np.isfinite(error[:, k]).sum()
    there = np.nansum(np.abs(error[:, k]))
    np.testing.assert_allclose(found.total, there, rtol=1e-5)
  assert metrics["rewards/accuracies/b"].count == 4
  assert "rewards/chosen" not in metrics


@pytest.mark.parametrize("name", ["bradley_terry", "reward_mse_axes"])
def test_an_axis_without_labels_has_no_gradient(rating, params, data, name):
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), _batch(data))
  objective = reward_objective(rating, config.Loss(name=name))

  def total(params):
    terms, *_ = objective({"policy": params}, {}, {}, batch, jax.random.key(0))
    return terms["loss"].total

  grads = jax.jit(jax.grad(total))(params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  size = np.abs(grads["score"]["kernel"]).max(axis=0)
  assert (size[:2] > 0.0).all()
  assert size[2] == 0.0


def test_micro_batches_add_up(rating, params, data):
  objective = reward_objective(rating, config.Loss(name="bradley_terry"))

  @jax.jit
  def summed(params, batch):
    one = lambda micro: objective(
      {"policy": params}, {}, {}, micro, jax.random.key(0)
    )
    terms, _, metrics = jax.lax.map(one, batch)
    return jax.tree.map(jnp.sum, {**terms, **metrics})

  packings = {"rows": 2}, {"rows": 1, "row_length": 24}
  whole, parts = (
    summed(params, jax.tree.map(jnp.asarray, _batch(data, **each)))
    for each in packings
  )
  assert len(_batch(data, **packings[1]).tokens) > 1
  for name, term in whole.items():
    assert term.count == parts[name].count, name
    # Measured: 5e-7.
    np.testing.assert_allclose(term.total, parts[name].total, atol=1e-5)


def test_one_axis_is_the_loss_of_one_reward(definition, params, data):
  """Where all are rated, so that the two take the same comparisons."""
  one = define(definition.config, dtype="float32", rewards=("a",))
  params = {**params, "score": {"kernel": params["score"]["kernel"][:, :1]}}
  full = data.select([0])
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), _batch(full, batch_size=1))
  rated = batch.slots.ratings[:, :1], batch.comparisons.preferences[:, :1]
  sides = [jnp.where(rated[1][:, 0] > 0.5, x, y) for x, y in (
    (batch.comparisons.better, batch.comparisons.worse),
    (batch.comparisons.worse, batch.comparisons.better),
  )]  # fmt: skip
  replace = lambda part, **given: type(part)(**{**vars(part), **given})
  batch = replace(
    batch,
    slots=replace(batch.slots, ratings=rated[0]),
    comparisons=replace(
      batch.comparisons,
      better=sides[0],
      worse=sides[1],
      preference=jnp.ones_like(rated[1][:, 0]),
      preferences=jnp.where(jnp.isnan(rated[1]), NAN, 1.0),
    ),
  )
  found = []
  for name in ("bradley_terry", "bradley_terry_axes"):
    objective = reward_objective(one, config.Loss(name=name))
    found.append(
      objective({"policy": params}, {}, {}, batch, jax.random.key(0))
    )
  (plain, _, plain_metrics), (axes, _, axes_metrics) = found
  np.testing.assert_allclose(plain["loss"], axes["loss"], rtol=1e-6)
  assert plain_metrics.keys() == axes_metrics.keys()
  for name, term in plain_metrics.items():
    np.testing.assert_allclose(term, axes_metrics[name], rtol=1e-6, atol=1e-7)


def test_which_losses_train_on_scores():
  several = ("a", "b")
  assert rated_axes(losses.bradley_terry, ("a",)) == ()
  assert rated_axes(losses.reward_bce, ("a",)) == ()
  assert rated_axes(losses.bradley_terry, several) == several
  assert rated_axes(losses.reward_mse, ("a",)) == ("a",)
  assert rated_axes(losses.bradley_terry_axes, ("a",)) == ("a",)
  with pytest.raises(UserError, match=r"'reward_bce' takes one label .* a, b"):
    rated_axes(losses.reward_bce, several)
