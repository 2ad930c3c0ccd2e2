"""The planned step of text beside the one that training makes."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpref import config, sharding
from jaxpref.data.batch import batch_shapes, make_batch
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.flops import step_flops
from jaxpref.models.build import define
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.flops import Tree, forward_flops
from jaxpref.plan.text import full_row, step_shape, text_job


def _settings(**sections):
  arch = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
  }  # fmt: skip
  sections.setdefault("model", {"arch": arch})
  return config.build(sections)


def test_a_row_is_full():
  data = {"max_length": 64, "row_length": 256}
  row = full_row(_settings(data=data))
  assert row == [Tree(32, (32, 32))] * 2 + [Tree(21, (21, 21))]
  row = full_row(_settings(data={**data, "max_prompt_length": 48}))
  assert row == [Tree(48, (16, 16))] * 3 + [Tree(9, (3, 3))]
  row = full_row(_settings(data={**data, "share_prompts": False}))
  assert row == [Tree(32, (32,))] * 4
  row = full_row(_settings(data=data, loss={"name": "sft"}))
  assert row == [Tree(32, (32,))] * 4
  row = full_row(_settings(data={**data, "row_length": 64}))
  assert row == [Tree(32, (32,))]  # a response and its prompt a row
  with pytest.raises(UserError, match="row_length is 63, and a prompt with"):
    full_row(_settings(data={**data, "row_length": 63}))
  model = {"prompt": {"length": 8}}
  row = full_row(_settings(data=data, model=model))
  assert row == [Tree(32, (32, 32))] * 2 + [Tree(13, (13, 13))]
  with pytest.raises(UserError, match="64 tokens beside 8 virtual ones"):
    full_row(_settings(data={**data, "row_length": 71}, model=model))


@pytest.mark.parametrize("loss", ["dpo", "kto", "sft"])
def test_training_on_such_examples_has_that_shape(loss, make_prepared):
  data = {"max_length": 32, "row_length": 48, "batch_size": 8}
  settings = _settings(data=data, loss={"name": loss})
  mesh = sharding.make_mesh(1, 4, 1)
  planned = step_shape(settings, mesh)
  labels = [True, False]
  examples = [([1] * 16, [[2] * 16, [3] * 16], [(0, 1)], labels)] * 8
  prepared = make_prepared(examples)
  if loss == "kto":
    prepared = prepared.with_mismatched(8, 32)
  steps = Steps(
    prepared,
    batch_size=8,
    rows=4,
    row_length=48,
    kept=prepared.imitated if loss == "sft" else None,
  )
  made = steps.shape
  if loss == "sft":  # a full row has a shorter example besides
    made = dataclasses.replace(
      made, tokens=48, sequences=(32, 16), responses=24, slots=8,
      micro_batches=1,
    )  # fmt: skip
    counts = {"comparisons": made.comparisons, "lists": made.lists}
    planned = dataclasses.replace(planned, **counts)
  assert planned == made


def test_shapes_of_a_batch(make_prepared):
  data = make_prepared([([1, 2], [[3] * 9, [4] * 5], [(0, 1)])] * 5)
  steps = Steps(data, batch_size=5, rows=2, row_length=32)
  for cached in (False, True):
    values = np.zeros(14 * 5, np.float32) if cached else None
    packing, shape = steps.packing(0)
    made = make_batch(data, packing, shape, values)
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made
    )
    assert batch_shapes(shape, cached=cached) == shapes


def test_numbers_that_the_literature_gives():
  """Forward GFLOP a token at 2,048 tokens; PaLM's count of a step."""
  for preset, expected in (
    ("llama-3.2-1b", 2.61),
    ("llama-3.2-3b", 6.78),
    ("llama-3.1-8b", 15.55),
  ):
    shape = LlamaConfig.from_arch({"preset": preset})
    model = define(shape, dtype="bfloat16")
    # All tokens but the first are scored here, as in pretraining.
    one = forward_flops(model, [Tree(1, (2048,))])
    each = (one.linear + one.attention) / 2048 / 1e9
    assert each == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(
  ("reference", "lora", "linear", "attention"),
  [
    ("none", 0, 3, 3),
    ("cached", 0, 3, 3),
    ("live", 0, 4, 4),
    ("cached", 4, 2, 3),
    ("base", 4, 3, 4),
  ],
)
def test_each_method_counts_as_what_it_is(reference, lora, linear, attention):
  shape = LlamaConfig.from_arch({"vocab_size": 64, "hidden_size": 32})
  adapter = config.Lora(rank=lora)
  model = define(shape, dtype="float32", lora=adapter)
  settings = config.Config(
    model=config.Model(lora=adapter),
    reference=config.Reference(mode=reference),
  )
  trees = [Tree(5, (3, 4)), Tree(2, (6,))]
  one = forward_flops(model, trees)
  assert step_flops(settings, model, trees) == pytest.approx(
    linear * one.linear + attention * one.attention + 3 * one.adapter
  )


def test_a_prompt_counts_once():
  """By hand: tokens of the tree, and the pairs that see each other."""
  arch = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
  shape = LlamaConfig.from_arch({**arch, "num_attention_heads": 4})
  model = define(shape, dtype="float32")
  one = forward_flops(model, [Tree(5, (3, 4))])
  block = 4 * 32 * 32 + 3 * 32 * shape.intermediate_size
  assert one.linear == 2 * (12 * 2 * block + 7 * 64 * 32)
  seen = 15 + (6 + 7 + 8) + (6 + 7 + 8 + 9)
  assert one.attention == 2 * 4 * 32 * seen
  assert one.adapter == 0.0


def test_a_planned_step_is_the_one_that_runs():
  """State and frozen parts as the runs of tests/test_run.py have them."""
  mesh = sharding.make_mesh(1, 4, 2)
  job = text_job(_settings(reference={"mode": "live"}), mesh)
  assert set(job.frozen) == {"reference"}
  assert job.batch.ref_token_logp is None
  job = text_job(_settings(reference={"mode": "cached"}), mesh)
  assert not job.frozen
  assert job.batch.ref_token_logp is not None
  assert isinstance(job.batch.tokens, jax.ShapeDtypeStruct)
  assert job.batch.tokens.sharding.spec == jax.P(None, ("data", "fsdp"))


@pytest.mark.parametrize("loss", ["bradley_terry", "reward_mse_axes"])
def test_a_step_of_several_rewards(loss):
  arch = _settings().model.arch
  model = {"arch": arch, "reward_axes": ("a", "b")}
  job = text_job(
    _settings(model=model, loss={"name": loss}), sharding.make_mesh(1, 1, 1)
  )
  slots, pairs = job.batch.slots, job.batch.comparisons
  assert slots.ratings.shape == (*slots.valid.shape, 2)
  assert pairs.preferences.shape == (*pairs.valid.shape, 2)
  micro = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), job.batch
  )
  found = jax.eval_shape(
    job.objective, job.state.params, job.frozen, {}, micro, jax.random.key(0)
  )
  assert {"rewards/accuracies/a", "rewards/accuracies/b"} < found[2].keys()


def test_virtual_tokens_count_for_the_policy_alone():
  shape = LlamaConfig.from_arch({"vocab_size": 64, "hidden_size": 32})
  prompt = config.Prompt(length=3)
  model = define(shape, dtype="float32", prompt=prompt)
  plain = define(shape, dtype="float32")
  one = forward_flops(model, [Tree(5, (3, 4))])
  assert one == forward_flops(plain, [Tree(8, (3, 4))])
  settings = config.Config(
    model=config.Model(prompt=prompt), reference=config.Reference(mode="base")
  )
  reference = sum(forward_flops(plain, [Tree(5, (3, 4))]))
  assert step_flops(settings, model, [Tree(5, (3, 4))]) == pytest.approx(
    2 * one.linear + 3 * one.attention + reference
  )


@pytest.mark.parametrize("prefix", [0, 8])
def test_virtual_tokens_have_their_places_in_a_plan(prefix, make_prepared):
  data = {"max_length": 32, "row_length": 48 + prefix, "batch_size": 4}
  settings = _settings(data=data, model={"prompt": {"length": prefix}})
  planned = step_shape(settings, sharding.make_mesh(1, 4, 1))
  prepared = make_prepared([([1] * 16, [[2] * 16, [3] * 16], [(0, 1)])] * 4)
  steps = Steps(
    prepared, batch_size=4, rows=4, row_length=48 + prefix, prefix=prefix
  )
  assert planned == steps.shape
  assert batch_shapes(planned, cached=False).prefix == prefix


def test_a_window_limits_what_a_token_sees():
  shape = LlamaConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, head_dim=8, sliding_window=4,
    layer_types=("sliding_attention", "full_attention"),
  )  # fmt: skip
  one = forward_flops(define(shape, dtype="float32"), [Tree(5, (3,))])
  sliding = 1 + 2 + 3 + 4 + 4 + (4 + 4 + 4)
  assert one.attention == 4 * 32 * (sliding + 36)
