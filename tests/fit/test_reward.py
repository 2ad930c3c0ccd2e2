"""The reward objective against one sequence a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config, losses
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.loss import trains_rewards
from jaxpref.fit.merge import merge_micro_batches
from jaxpref.fit.reward import reward_objective, score_rewards
from jaxpref.models.build import bind, define, init_params
from jaxpref.ops.attention import padded_attention

BRADLEY_TERRY = config.Loss(name="bradley_terry", options={"center": 0.1})


@pytest.fixture(scope="module")
def rating(definition):
  """A reward model of the same shape."""
  return define(definition.config, dtype="float32", rewards=("reward",))


@pytest.fixture(scope="module")
def params(rating):
  made = init_params(rating, jax.random.key(0))
  kernel = jax.random.normal(jax.random.key(1), (32, 1)) / 5
  return {**made, "score": {"kernel": kernel}}


@pytest.fixture(scope="module")
def few(make_prepared):
  """Responses of one token, of many, and a soft label."""
  rng = np.random.default_rng(1)
  take = lambda n: rng.integers(1, 64, size=n).tolist()
  shapes = [(5, [7, 1, 4]), (1, [1, 2]), (6, [9, 5]), (3, [1, 6])]
  pairs = [[(0, 1), (2, 0)], [(1, 0)], [(0, 1, 0.8, 2.0)], [(1, 0)]]
  return make_prepared(
    [
      (take(prompt), [take(n) for n in lengths], each)
      for (prompt, lengths), each in zip(shapes, pairs, strict=True)
    ]
  )


@pytest.fixture(scope="module")
def plain(rating, params, few):
  """The reward of each response, each a row of its own."""
  prompts = np.repeat(np.arange(len(few)), np.diff(few.first_response))
  rows = [[*few.prompt(i), *few.response(j)] for j, i in enumerate(prompts)]
  lengths = np.array(list(map(len, rows)))
  tokens = np.zeros((len(rows), lengths.max()), np.int32)
  for row, sequence in zip(tokens, rows, strict=True):
    row[: len(sequence)] = sequence
  valid = np.arange(tokens.shape[1])[None] < lengths[:, None]
  position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

  @jax.jit
  def score(params):
    model = bind(rating, params)
    attend = padded_attention(jnp.asarray(valid))
    return model.score(model(jnp.asarray(tokens), position, attend)[0])

  return np.asarray(score(params))[np.arange(len(rows)), lengths - 1, 0]


def _steps(data, **given):
  return Steps(data, **{"batch_size": 4, "rows": 2, "row_length": 64} | given)


def _numbers(packing):
  """Of each slot of a micro-batch, the number of the response."""
  return [[j for row in m for p in row for j in p.responses] for m in packing]


@pytest.mark.parametrize(
  "given",
  [{}, {"share_prompts": False}, {"rows": 1, "row_length": 24}],
  ids=["packed", "unshared", "micro-batches"],
)
def test_rewards_are_those_of_single_sequences(
  rating, params, few, plain, given
):
  steps = _steps(few, **given)
  batch = jax.tree.map(jnp.asarray, steps[0])
  score = functools.partial(score_rewards, rating, params)
  rewards = jax.jit(lambda x: jax.lax.map(score, x))(batch)
  numbers = _numbers(steps.packing(0)[0])
  assert (len(numbers) > 1) == ("rows" in given)
  for m, here in enumerate(numbers):
    # Measured: 4e-7.
    found = rewards[m, : len(here), 0]
    np.testing.assert_allclose(found, plain[here], atol=1e-5)
  # Merged, a slot's token is that of its own micro-batch.
  merged, _ = merge_micro_batches(batch, rewards)
  last = merged.tokens.ravel()[merged.last]
  ends = [int(few.response(j)[-1]) for here in numbers for j in here]
  np.testing.assert_array_equal(last[np.asarray(merged.slots.valid)], ends)


def test_loss_and_metrics(rating, params, few, plain):
  steps = _steps(few)
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), steps[0])
  objective = reward_objective(rating, BRADLEY_TERRY)
  terms, state, metrics = jax.jit(objective)(
    {"policy": params}, {}, {}, batch, jax.random.key(0)
  )
  better, worse = (jnp.asarray(plain[x]) for x in (few.better, few.worse))
  accuracy = float(jnp.mean(better > worse))
  loss = functools.partial(losses.bradley_terry, center=0.1)
  p = few.preference
  each = p * loss(better, worse) + (1 - p) * loss(worse, better)
  assert state == {}
  assert terms["loss"].count == len(p) == 5
  total = np.sum(few.weight * each)
  np.testing.assert_allclose(terms["loss"].total, total, rtol=1e-5)
  mean = {name: float(x.total / x.count) for name, x in metrics.items()}
  assert mean == pytest.approx(
    {
      "rewards/chosen": float(better.mean()),
      "rewards/rejected": float(worse.mean()),
      "rewards/margins": float((better - worse).mean()),
      "rewards/accuracies": accuracy,
      "rewards/ties": 0.0,
    },
    abs=1e-5,
  )


def test_single_labelled_responses(rating, params, few, plain):
  """A label is the data's, or what comparisons say."""
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), _steps(few)[0])
  objective = reward_objective(rating, config.Loss(name="reward_bce"))
  terms, _, metrics = jax.jit(objective)(
    {"policy": params}, {}, {}, batch, jax.random.key(0)
  )
  good, bad = plain[few.label == 1], plain[few.label == 0]
  each = np.log1p(np.exp(np.concatenate([-good, bad])))
  np.testing.assert_allclose(terms["loss"].total, each.sum(), rtol=1e-5)
  chosen = metrics["rewards/chosen"]
  np.testing.assert_allclose(chosen.total, good.sum(), rtol=1e-5)
  assert chosen.count == len(good)


def _settings(loss, *axes):
  options = {"beta": 0.1} if loss == "dpo" else {}
  tree = {"loss": {"name": loss, **options}, "model": {"reward_axes": axes}}
  return config.build(tree)


def test_which_losses_train_rewards():
  assert trains_rewards(_settings("bradley_terry"))
  assert trains_rewards(_settings("reward_bce", "right"))
  assert not trains_rewards(_settings("dpo"))
  with pytest.raises(UserError, match="'dpo' takes chosen_logratio, rejected"):
    trains_rewards(_settings("dpo", "quality"))


def test_one_reward_for_losses_of_one(definition):
  both = define(definition.config, dtype="float32", rewards=("a", "b"))
  with pytest.raises(UserError, match=r"one label .* and the model has a, b"):
    reward_objective(both, config.Loss(name="reward_bce"))
