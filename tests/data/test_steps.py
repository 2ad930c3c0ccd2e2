"""Step batches as a pure function of (seed, step, lengths)."""

import jax
import numpy as np
import pytest

from jaxpref.data import steps as steps_module
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError

COUNT, BATCH = 22, 5  # so that the last step of an epoch has 2 of 5


@pytest.fixture(scope="module")
def data(make_prepared):
  """Pairs and triples of random lengths; up to 30 tokens a sequence."""
  rng = np.random.default_rng(0)
  take = lambda low, high: rng.integers(1, 99, rng.integers(low, high)).tolist()
  return make_prepared(
    [
      (
        take(1, 10),
        [take(1, 20) for _ in range(n)],
        [(i, 0) for i in (1, n - 1)],
      )
      for n in rng.integers(2, 4, size=COUNT)
    ]
  )


def _steps(data, **given):
  settings = {
    "batch_size": BATCH,
    "rows": 2,
    "row_length": 64,
    "shuffle": True,
    "seed": 3,
    "num_steps": 12,
  }
  return Steps(data, **{**settings, **given})


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _examples(batch):
  return np.unique(batch.slots.example_id[batch.slots.valid]).tolist()


def _responses(batch, example):
  here = batch.slots.valid & (batch.slots.example_id == example)
  return [
    batch.target[micro][batch.slot[micro] == slot].tolist()
    for micro, slot in np.argwhere(here)
  ]


def test_a_batch_depends_on_its_number_only(data):
  walked = _steps(data)
  batches = [walked[step] for step in range(12)]
  for step in (11, 0, 7):
    _assert_equal(_steps(data)[step], batches[step])


def test_the_loader_gives_what_indexing_gives(data):
  steps = _steps(data)
  loaded = list(steps.loader(range(3, 9)))
  assert len(loaded) == 6
  for step, batch in zip(range(3, 9), loaded, strict=True):
    _assert_equal(batch, steps[step])
  assert list(steps.loader(range(9, 9))) == []


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_sees_each_example_once(data, shuffle):
  steps = _steps(data, shuffle=shuffle)
  assert steps.steps_per_epoch == 5
  for epoch in (0, 1):
    numbers = range(5 * epoch, 5 * epoch + 5)
    seen = [i for step in numbers for i in _examples(steps[step])]
    assert sorted(seen) == list(range(COUNT))
    sizes = [len(steps.examples(step)) for step in numbers]
    assert sizes == [5, 5, 5, 5, 2]  # the last is filled with invalid ones


def test_epochs_and_seeds_differ_where_shuffled(data):
  order = lambda steps, epoch: [
    int(i) for k in range(5) for i in steps.examples(5 * epoch + k)
  ]
  steps, other = _steps(data), _steps(data, seed=4)
  assert order(steps, 0) != order(steps, 1)
  assert order(steps, 0) != order(other, 0)
  plain = _steps(data, shuffle=False)
  assert order(plain, 0) == order(plain, 1) == list(range(COUNT))
  assert order(steps, 1000) == order(_steps(data), 1000)  # far beyond the plan


def test_all_steps_have_one_shape(data):
  steps = _steps(data)
  shapes = {
    tuple(leaf.shape for leaf in jax.tree.leaves(steps[step]))
    for step in range(len(steps))
  }
  assert len(steps) == 12
  assert len(shapes) == 1
  # Few lengths, so that attention is compiled few times.
  assert len(set(steps.shape.sequences)) <= 4


def test_buckets(data):
  """Fewer tokens, at most so many shapes, and the same examples."""
  one, three = _steps(data), _steps(data, buckets=3)
  tokens = lambda steps: sum(steps.waste(step).tokens for step in range(12))
  assert tokens(three) < 0.85 * tokens(one)  # measured: 0.80
  assert len(three.shapes) == 3
  assert three.shape == three.shapes[-1]
  for step in range(12):
    assert three.packing(step)[1] in three.shapes
    np.testing.assert_array_equal(three.examples(step), one.examples(step))
    for example in _examples(three[step]):
      assert sorted(_responses(three[step], example)) == sorted(
        _responses(one[step], example)
      )
  assert len(_steps(data, buckets=100).shapes) <= 12


def test_a_step_that_the_plan_did_not_foresee(make_prepared, monkeypatch):
  monkeypatch.setattr(steps_module, "_PLANNED_STEPS", 2)
  short, long = ([1], [[2], [3]], [(0, 1)]), ([1] * 9, [[2] * 30] * 2, [(0, 1)])
  data = make_prepared([short] * 10 + [long] * 5)
  steps = _steps(data, shuffle=False)
  packing, shape = steps.packing(2)
  assert shape != steps.shape
  assert shape.covers(steps.shape)
  assert steps.packing(1)[1] == steps.shape
  batch = steps[2]
  assert (batch.target == 2).sum() == 5 * 2 * 30
  assert batch.tokens.shape[:2] == (len(packing), 2)


def test_supervised_steps_leave_out_what_is_worse(data):
  steps = _steps(data, kept=data.imitated, shuffle=False)
  kept = sorted(set(range(len(data.response_lengths))) - set(data.worse))
  tokens = 0
  for step in range(5):
    batch = steps[step]
    assert not batch.comparisons.valid.any()
    tokens += (batch.slot < steps.shape.slots).sum()
  assert tokens == data.response_lengths[kept].sum()


def test_prompts_repeated(data):
  shared, repeated = _steps(data), _steps(data, share_prompts=False)
  for step in (0, 4):
    assert _examples(shared[step]) == _examples(repeated[step])
  rows = lambda steps: [
    row for m in steps.packing(0)[0] for row in m for piece in row
  ]
  assert len(rows(repeated)) > len(rows(shared))


@pytest.mark.parametrize("share_prompts", [True, False])
def test_waste_is_what_the_arrays_say(data, share_prompts):
  steps = _steps(data, share_prompts=share_prompts, rows=3)
  for step in range(5):
    batch, waste = steps[step], steps.waste(step)
    scored = (batch.slot < steps.shape.slots).sum(axis=-1)
    assert waste.tokens == batch.tokens.size
    assert waste.idle_rows == (scored == 0).sum() * batch.tokens.shape[-1]
    prompts = data.prompt_lengths[steps.examples(step)].sum()
    useful = prompts + scored.sum()
    assert sum(waste[1:]) == waste.tokens - useful
    assert (waste.repeated_prompts > 0) == (not share_prompts)


def test_rows_shorter_than_a_sequence(data):
  longest = max(
    len(data.prompt(i)) + data.response_lengths[j]
    for i in range(COUNT)
    for j in range(data.first_response[i], data.first_response[i + 1])
  )
  _steps(data, row_length=int(longest), rows=3)
  with pytest.raises(UserError, match=f"longest .* has {longest} tokens"):
    _steps(data, row_length=int(longest) - 1, rows=3)


def test_too_few_rows_for_an_example(make_prepared):
  pairs = [(0, 1), (0, 2)]
  small = ([1], [[2], [3]], [(0, 1)])
  wide = make_prepared([small, ([1] * 20, [[2] * 30] * 3, pairs)])
  with pytest.raises(UserError, match=r"made:1 has 3 parts of up to 50 tokens"):
    _steps(wide, rows=2)
  assert len(_steps(wide, rows=3).packing(0)[0]) >= 1


def test_selected_examples_are_served_alike(data):
  """What was held out is numbered anew, and its tokens are its own."""
  chosen = [20, 3, 11]
  part = data.select(chosen)
  steps = _steps(part, shuffle=False, num_steps=0)
  assert len(steps) == 1
  batch = steps[0]
  assert _examples(batch) == [0, 1, 2]
  for new, old in enumerate(chosen):
    first, last = data.first_response[old : old + 2]
    told = [data.response(j).tolist() for j in range(first, last)]
    assert sorted(_responses(batch, new)) == sorted(told)
