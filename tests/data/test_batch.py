"""Every sequence can be read back from the arrays of a batch."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpref.data.batch import make_batch, needed_shape, places
from jaxpref.data.packing import pack_fewest, split_example
from jaxpref.data.steps import Steps

ROW = 48


def _random_examples(seed, count=12):
  """Of 1 to 4 responses, no token twice, so that each says where it is from."""
  rng = np.random.default_rng(seed)
  ids = iter(range(1, 10**6))
  take = lambda n: [next(ids) for _ in range(n)]
  examples = []
  for _ in range(count):
    prompt = take(rng.integers(1, 16))
    responses = [take(rng.integers(1, 24)) for _ in range(rng.integers(1, 5))]
    numbers = range(len(responses))
    pairs = [
      (i, j, float(rng.random()), float(rng.random()))
      for i in numbers
      for j in numbers
      if i != j and rng.random() < 0.5
    ]
    examples.append((prompt, responses, pairs))
  return examples


def _packing(data, *, share_prompts, rows=4, at_least=1):
  def pieces(i):
    numbers = range(data.first_response[i], data.first_response[i + 1])
    lengths = [(j, int(data.response_lengths[j])) for j in numbers]
    return split_example(
      i,
      int(data.prompt_lengths[i]),
      lengths,
      row_length=ROW,
      share_prompts=share_prompts,
    )

  return pack_fewest(
    [pieces(i) for i in range(len(data))],
    rows=rows,
    row_length=ROW,
    at_least=at_least,
  )


@pytest.fixture(
  params=[(s, share) for s in range(4) for share in (1, 0)],
  ids=lambda p: f"{p[0]}-{'shared' if p[1] else 'repeated'}",
)
def case(request, make_prepared):  # fmt: skip
  seed, share_prompts = request.param
  data = make_prepared(_random_examples(seed))
  packing = _packing(data, share_prompts=bool(share_prompts))
  shape = needed_shape(data, packing)
  return data, packing, shape, make_batch(data, packing, shape)


def _sequences(batch, m, r):
  """What attention sees of a row: place in the flat layout -> token index."""
  return np.concatenate([index[m, r].ravel() for index in batch.expand])


def test_attention_sees_each_prompt_with_each_response(case):
  data, packing, _, batch = case
  for m, micro in enumerate(packing):
    for r, row in enumerate(micro):
      expected = {
        (*data.prompt(piece.example), *data.response(j))
        for piece in row
        for j in piece.responses
      }
      seen = set()
      for index in batch.expand:
        for sequence in index[m, r]:
          # Up to the padding, which repeats token 0; but the first may be 0.
          length = 1 + np.max(np.flatnonzero(sequence), initial=0)
          tokens = batch.tokens[m, r][sequence[:length]]
          position = batch.position[m, r][sequence[:length]]
          if (*tokens,) in expected:
            seen.add((*tokens,))
            np.testing.assert_array_equal(position, np.arange(length))
          else:
            assert not sequence.any()  # a seat that is not taken
      assert seen == expected


def test_collapse_brings_every_token_back(case):
  _, packing, _, batch = case
  for m, micro in enumerate(packing):
    for r, row in enumerate(micro):
      size = sum(piece.size for piece in row)
      flat = _sequences(batch, m, r)
      back = flat[batch.collapse[m, r, :size]]
      np.testing.assert_array_equal(back, np.arange(size))
      for name in ("tokens", "position", "collapse"):
        assert not getattr(batch, name)[m, r, size:].any()


@pytest.mark.parametrize("share_prompts", [True, False])
def test_places_before_each_prompt(make_prepared, share_prompts):
  """Kept free in every tree, and the first of each of its sequences."""
  data = make_prepared(_random_examples(7, count=6))
  steps = Steps(
    data,
    batch_size=6,
    rows=4,
    row_length=64,
    share_prompts=share_prompts,
    prefix=4,
  )
  (packing, shape), batch = steps.packing(0), steps[0]
  assert batch.prefix == shape.prefix == 4
  texts = set()
  for index in batch.expand:
    for m, r, seat in np.ndindex(index.shape[:3]):
      sequence = index[m, r, seat]
      if not sequence.any():
        continue  # a seat that is not taken
      length = 1 + np.max(np.flatnonzero(sequence))
      tokens = batch.tokens[m, r][sequence[:length]]
      position = batch.position[m, r][sequence[:length]]
      np.testing.assert_array_equal(position, np.arange(length))
      assert not tokens[:4].any()
      texts.add((*tokens[4:],))
  assert texts == {
    (*data.prompt(piece.example), *data.response(j))
    for micro in packing
    for row in micro
    for piece in row
    for j in piece.responses
  }
  repeated = sum(len(row) for micro in packing for row in micro) - len(data)
  assert (steps.waste(0).repeated_prompts == 0) == (repeated == 0)


def test_head_reads_the_token_before_each_response_token(case):
  data, packing, shape, batch = case
  found = 0
  for m in range(shape.micro_batches):
    numbers = [j for row in packing[m] for p in row for j in p.responses]
    for slot, number in enumerate(numbers):
      r, at = np.nonzero(batch.slot[m] == slot)
      assert len(set(r)) == 1
      source, target = batch.source[m, r, at], batch.target[m, r, at]
      response = data.response(number)
      np.testing.assert_array_equal(target, response)
      example = int(batch.slots.example_id[m, slot])
      before = [data.prompt(example)[-1], *response[:-1]]
      np.testing.assert_array_equal(batch.tokens[m, r[0]][source], before)
      # The hidden state must be that of this response's own tokens.
      place = batch.position[m, r[0]][source]
      first = data.prompt_lengths[example] - 1
      np.testing.assert_array_equal(place, first + np.arange(len(response)))
      found += len(response)
  assert found == data.response_lengths.sum()
  padding = batch.slot == shape.slots
  assert padding.sum() + found == padding.size
  assert not batch.source[padding].any()
  assert not batch.target[padding].any()


def test_slots_and_comparisons(case):
  data, packing, shape, batch = case
  bounds = zip(data.first_response, data.first_response[1:], strict=False)
  example_of = np.concatenate(
    [np.full(last - first, i) for i, (first, last) in enumerate(bounds)]
  )
  told = []
  for m, micro in enumerate(packing):
    numbers = np.array([j for row in micro for p in row for j in p.responses])
    valid = batch.slots.valid[m]
    np.testing.assert_array_equal(valid, np.arange(shape.slots) < len(numbers))
    np.testing.assert_array_equal(
      batch.slots.example_id[m][valid], example_of[numbers]
    )
    part = jax.tree.map(lambda x, m=m: x[m], batch.comparisons)
    better, worse = (
      numbers[part.better[part.valid]],
      numbers[part.worse[part.valid]],
    )
    told += zip(
      better.tolist(),
      worse.tolist(),
      part.preference[part.valid].tolist(),
      part.weight[part.valid].tolist(),
      strict=True,
    )
    # Padding names slot 0, which is real, and is counted nowhere.
    assert not part.better[~part.valid].any()
    assert not part.worse[~part.valid].any()
  columns = (data.better, data.worse, data.preference, data.weight)
  expected = zip(*(column.tolist() for column in columns), strict=True)
  assert sorted(told) == sorted(expected)


def test_sizes_and_dtypes_follow_the_shape(case):
  _, _, shape, batch = case
  lead = (shape.micro_batches, shape.rows)
  tokens, responses = (*lead, shape.tokens), (*lead, shape.responses)
  assert batch.tokens.shape == batch.position.shape == tokens
  assert batch.collapse.shape == tokens
  assert batch.source.shape == batch.target.shape == responses
  assert batch.slot.shape == responses
  seats = [i.shape[3] for i in batch.expand for _ in range(i.shape[2])]
  assert tuple(seats) == shape.sequences
  for leaf in jax.tree.leaves(batch):
    assert leaf.dtype in (np.int32, np.float32, np.bool_)
  assert batch.ref_token_logp is None


def test_places_say_where_scored_tokens_stand(case):
  data, packing, _, batch = case
  seen = []
  for place in places(data, packing):
    here = slice(place.start, place.start + place.length)
    np.testing.assert_array_equal(
      batch.target[place.micro, place.row, here], data.response(place.response)
    )
    seen.append(place.response)
  assert sorted(seen) == list(range(len(data.response_lengths)))


def test_reference_values_stand_beside_their_tokens(case):
  data, packing, shape, plain = case
  # Every token is another id, so its own id serves as its value.
  ids = [data.response(j) for j in range(len(data.response_lengths))]
  values = np.concatenate(ids).astype(np.float32)
  batch = make_batch(data, packing, shape, values)
  np.testing.assert_array_equal(batch.ref_token_logp, plain.target)


def test_a_larger_shape_only_adds_padding(case):
  data, packing, shape, small = case
  larger = dataclasses.replace(
    shape,
    tokens=shape.tokens + 8,
    sequences=(shape.sequences[0] + 8, *shape.sequences, 8),
    responses=shape.responses + 8,
    slots=shape.slots + 3,
    comparisons=shape.comparisons + 2,
  )
  batch = make_batch(data, packing, larger)
  real = batch.slot < larger.slots
  np.testing.assert_array_equal(
    batch.target[real], small.target[small.slot < shape.slots]
  )
  assert batch.comparisons.valid.sum() == small.comparisons.valid.sum()
  for m, micro in enumerate(packing):
    for r, row in enumerate(micro):
      size = sum(piece.size for piece in row)
      back = _sequences(batch, m, r)[batch.collapse[m, r, :size]]
      np.testing.assert_array_equal(back, np.arange(size))


def test_empty_rows_and_micro_batches_are_all_padding(make_prepared):
  data = make_prepared([([1, 2], [[3], [4, 5]], [(0, 1)])])
  packing = _packing(data, share_prompts=True, rows=2, at_least=2)
  batch = make_batch(data, packing, shape := needed_shape(data, packing))
  assert not batch.slots.valid[1].any()
  assert not batch.comparisons.valid[1].any()
  assert (batch.slot[1] == shape.slots).all()
  assert (batch.slot[0, 1] == shape.slots).all()


def test_a_tree_by_hand(make_prepared):
  """Prompt 5 6, responses 7 and 8 9: their tokens are 0 1, 2 and 3 4."""
  data = make_prepared([([5, 6], [[7], [8, 9]], [(1, 0)])])
  packing = _packing(data, share_prompts=True, rows=1)
  batch = make_batch(data, packing, needed_shape(data, packing))
  row = jax.tree.map(lambda x: x[0, 0], batch)
  assert row.tokens[:6].tolist() == [5, 6, 7, 8, 9, 0]
  assert row.position[:6].tolist() == [0, 1, 2, 2, 3, 0]
  (sequences,) = row.expand  # the longest has the first seat
  assert sequences[:, :5].tolist() == [[0, 1, 3, 4, 0], [0, 1, 2, 0, 0]]
  assert row.source[:4].tolist() == [1, 1, 3, 0]
  assert row.target[:4].tolist() == [7, 8, 9, 0]
  assert row.slot[:4].tolist() == [0, 1, 1, 2]
  pairs = jax.tree.map(lambda x: x[0, 0], batch.comparisons)
  assert (pairs.better, pairs.worse, pairs.valid) == (1, 0, True)
