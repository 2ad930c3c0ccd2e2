"""The one step: the same numbers however a batch is laid out or spread."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref import config, sharding
from jaxpref.data.steps import Steps
from jaxpref.fit import step as step_module
from jaxpref.fit.objectives import text_objective
from jaxpref.fit.step import (
  TrainState,
  init_state,
  make_evaluate,
  make_step,
  state_shardings,
)
from jaxpref.models.build import define, init_params
from jaxpref.models.llama.config import LlamaConfig

# Measured for all ways below: losses 2e-7 (IPO 7e-7, SFT 1.4e-6 of 4.8),
# parameters 2e-6 (of updates of 0.03), gradient norms 4e-6 of 11; see `EPS` of
# conftest.py. AOT's third norm moves by 4e-6 of itself, on one device, when
# nothing but the last bits of the first parameters changes.
LOSS, PARAMS, NORM = 5e-6, 1e-5, 1e-5


WAYS = {
  "prompts repeated": {"share_prompts": False},
  "8 data": {"mesh": (8, 1, 1)},
  "8 fsdp": {"mesh": (1, 8, 1)},
  "4 fsdp x 2 tensor": {"mesh": (1, 4, 2)},
  "2 data x 2 fsdp x 2 tensor": {"mesh": (2, 2, 2)},
  "two micro-batches": {"rows": 1},
  "cached reference": {"reference": "cached"},
}


def _assert_same(one, other):
  np.testing.assert_allclose(other.losses, one.losses, rtol=0, atol=LOSS)
  for a, b in zip(one.metrics, other.metrics, strict=True):
    np.testing.assert_array_equal(b["loss"].count, a["loss"].count)
    np.testing.assert_allclose(
      b["grad_norm"].total, a["grad_norm"].total, rtol=NORM
    )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=PARAMS),
    other.params,
    one.params,
  )


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_three_steps_are_the_same(train, definition, way):
  one = train()
  assert np.ptp(one.losses) > 0.1
  start = init_params(definition, jax.random.key(0))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, one.params)
  assert min(jax.tree.leaves(moved)) > 0.01
  _assert_same(one, train(**way))


def _loads(trained):
  """Of each step, pairs and response tokens of its two micro-batches."""
  for batch in trained.batches:
    pairs = np.sum(batch.comparisons.valid, axis=1)
    scored = batch.slot < batch.slots.valid.shape[1]
    yield pairs.tolist(), np.sum(scored, axis=(1, 2)).tolist()


@pytest.mark.parametrize("loss", ["dpo", "ipo", "sft"])
def test_two_uneven_micro_batches_are_one(train, loss):
  reference = "none" if loss == "sft" else "live"
  way = {"loss": loss, "reference": reference}
  if loss == "sft":  # half of the responses: shorter rows
    way["row_length"] = 32
  one, two = train(**way), train(**way, rows=1)
  assert one.steps.shape.micro_batches == 1
  for pairs, tokens in _loads(two):
    assert len(tokens) == 2
    assert tokens[0] != tokens[1]
    assert loss == "sft" or pairs[0] != pairs[1]
  gaps = [abs(a - b) / max(a, b) for _, (a, b) in _loads(two)]
  assert max(gaps) > 0.15
  _assert_same(one, two)


@pytest.mark.parametrize("reference", ["live", "cached"])
def test_first_loss_is_ln_2(train, reference):
  """And exactly so, since policy and reference take the same path."""
  trained = train(reference=reference)
  assert abs(trained.losses[0] - np.log(2)) < 1e-6
  first = trained.metrics[0]
  assert first["rewards/ties"].total == first["rewards/ties"].count == 10
  assert first["rewards/accuracies"].total == 0


def test_the_last_step_counts_what_is_there(train):
  counts = [m["loss"].count for m in train().metrics]
  assert counts == [10, 10, 8]


def test_state_and_batch_lie_where_they_should(train, definition):
  trained = train(mesh=(1, 4, 2))
  mesh = sharding.make_mesh(1, 4, 2)
  where = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  adam = next(
    part
    for part in jax.tree.leaves(
      trained.state.opt_state,
      is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState),
    )
    if isinstance(part, optax.ScaleByAdamState)
  )
  for tree in (trained.state.params, adam.mu, adam.nu):
    jax.tree.map(_assert_spec, tree["policy"], where)
  kernel = adam.mu["policy"]["layers"]["mlp"]["up"]["kernel"]
  assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor")
  assert kernel.addressable_shards[0].data.size * 8 == kernel.size
  assert trained.state.step.sharding.is_fully_replicated
  batch = trained.batches[0]
  for x in (batch.tokens, batch.slot, *batch.expand):
    assert tuple(x.sharding.spec) == (None, ("data", "fsdp"))
    assert x.addressable_shards[0].data.shape[1] * 4 == x.shape[1]
  for x in jax.tree.leaves((batch.slots, batch.comparisons)):
    assert x.sharding.is_fully_replicated


def _assert_spec(x, where):
  assert x.sharding.spec == where.spec


@pytest.mark.parametrize(
  ("way", "traces"),
  [({}, 1), ({"mesh": (1, 4, 2)}, 1), ({"rows": 1}, 2)],
  ids=["1", "4x2", "micro-batches"],
)
def test_one_trace_for_one_shape(train, way, traces):
  """Several micro-batches are traced once more, to count."""
  trained = train(**way)
  assert trained.traces == traces
  assert trained.step._cache_size() == 1


def test_the_state_is_consumed(train):
  trained = train()
  for state in trained.consumed:
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
      assert leaf.is_deleted()
  for leaf in jax.tree.leaves((trained.state, trained.frozen)):
    assert not leaf.is_deleted()


def test_what_a_step_reports(train):
  trained = train()
  assert int(trained.state.step) == 3
  rates = [float(m["learning_rate"].total) for m in trained.metrics]
  np.testing.assert_allclose(rates, 1e-2, rtol=1e-6)
  assert {m["grad_norm"].count.item() for m in trained.metrics} == {1.0}
  for name, term in trained.metrics[1].items():
    assert np.isfinite(term.total), name
    assert term.total.dtype == np.float32


@pytest.mark.parametrize("rows", [8, 1])
def test_evaluation_is_a_step_without_its_update(train, definition, rows):
  trained = train(rows=rows)
  loss = config.Loss(name="dpo", options={"beta": 0.5})
  objective = text_objective(definition, loss, head_block=16)
  batch = trained.batches[1]
  with jax.set_mesh(sharding.make_mesh(1, 1, 1)):
    told = make_evaluate(objective)(trained.state, trained.frozen, batch)
    copy = jax.tree.map(jnp.copy, trained.state)
    _, expected = trained.step(copy, trained.frozen, batch)
  assert told.keys() == expected.keys() - {"grad_norm", "learning_rate"}
  for name, term in told.items():
    # Measured: 1e-5 of log-probs of hundreds of nats.
    np.testing.assert_allclose(term, expected[name], rtol=1e-5, atol=1e-5)


def _lower(definition, steps, objective=None, wrap=lambda f: f):
  """The step on one device, of shapes alone."""
  mesh = sharding.make_mesh(1, 1, 1)
  tx = optax.adamw(1e-3)
  where = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  shapes = {"policy": definition.shapes}
  shardings = state_shardings(mesh, tx, shapes, {"policy": where})
  if objective is None:
    loss = config.Loss(name="dpo", options={"beta": 0.1})
    objective = wrap(text_objective(definition, loss, head_block=64))
  with jax.set_mesh(mesh):
    step = make_step(objective, tx, optax.constant_schedule(1e-3), shardings)
    state = jax.eval_shape(
      lambda params: init_state(params, tx, 0, shardings), shapes
    )
    frozen = {"reference": definition.shapes}
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, steps[0]))
    return step.lower(state, frozen, batch)


def _steps(data, rows=2):
  return Steps(data, batch_size=5, rows=rows, row_length=64)


def test_counting_costs_no_forward_pass(definition, data, monkeypatch):
  """The compiler drops all of the objective but its counts."""
  steps = _steps(data, rows=1)  # two micro-batches: loops are not unrolled
  flops = lambda: _lower(definition, steps).compile().cost_analysis()["flops"]
  counted = flops()
  with monkeypatch.context() as patch:
    constant = lambda *args: {"loss": jnp.float32(10)}
    patch.setattr(step_module, "_counts", constant)
    alone = flops()
  with monkeypatch.context() as patch:
    # A count that needs the logits would cost a forward pass.
    count = step_module._counts
    patch.setattr(step_module, "_counts", functools.partial(_with_loss, count))
    forward = flops()
  assert counted < 1.005 * alone
  assert forward > 1.05 * alone  # the measure would have seen it


def _with_loss(count, objective, *args):
  def changed(*args):
    terms, state, metrics = objective.terms(*args)
    term = terms["loss"]
    counted = term._replace(count=term.count + 0.0 * term.total)
    return {"loss": counted}, state, metrics

  return count(dataclasses.replace(objective, terms=changed), *args)


def test_nothing_large_is_a_constant_of_the_step(data):
  """60 M parameters, and a program of less than 5 MB."""
  large = define(LlamaConfig(), dtype="bfloat16")
  count = sum(leaf.size for leaf in jax.tree.leaves(large.shapes))
  assert 55e6 < count < 65e6
  steps = _steps(data)
  assert len(_lower(large, steps).as_text()) < 5e6


def test_a_large_constant_would_be_seen(definition, data):
  closed_over = np.random.default_rng(0).normal(size=2**20).astype("float32")

  def wrap(objective):
    def with_constant(*args):
      terms, state, metrics = objective.terms(*args)
      extra = jnp.sum(jnp.sin(jnp.asarray(closed_over)))
      term = terms["loss"]
      return {"loss": term._replace(total=term.total * extra)}, state, metrics

    return dataclasses.replace(objective, terms=with_constant)

  steps = _steps(data)
  assert len(_lower(definition, steps).as_text()) < 5e6
  assert len(_lower(definition, steps, wrap=wrap).as_text()) > 5e6


def test_the_state_is_a_pytree_of_named_parts():
  params = {"policy": {"w": 2}}
  state = TrainState(1, params, opt_state=3, objective={}, key=4)
  paths, _ = jax.tree.flatten_with_path(state)
  names = [jax.tree_util.keystr(path) for path, _ in paths]
  assert names == [".step", ".params['policy']['w']", ".opt_state", ".key"]
