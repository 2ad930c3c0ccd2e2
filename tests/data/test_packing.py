"""Properties of packings over random lengths."""

import collections
import itertools

import numpy as np
import pytest

from jaxpref.data.packing import (
  Shape,
  Waste,
  measure_waste,
  merge_lengths,
  pack,
  pack_fewest,
  round_up,
  split_example,
)

ROW = 64


def _random_pieces(seed, share_prompts):
  """Examples of 1 to 5 responses; no sequence is longer than a row."""
  rng = np.random.default_rng(seed)
  numbers = itertools.count()
  sizes, examples = {}, []
  for example in range(rng.integers(1, 40)):
    prompt = int(rng.integers(1, 30))
    lengths = rng.integers(1, ROW - prompt, size=rng.integers(1, 6))
    responses = [(next(numbers), int(length)) for length in lengths]
    sizes |= {number: (example, prompt, n) for number, n in responses}
    examples.append(
      split_example(
        example,
        prompt,
        responses,
        row_length=ROW,
        share_prompts=share_prompts,
      )
    )
  return examples, sizes


def _pieces(packing):
  return [
    (micro, row, piece)
    for micro, rows in enumerate(packing)
    for row, pieces in enumerate(rows)
    for piece in pieces
  ]


def _loads(packing):
  return [
    sum(piece.size for piece in row) for micro in packing for row in micro
  ]


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_properties(seed, share_prompts):
  examples, sizes = _random_pieces(seed, share_prompts)
  packing = pack_fewest(examples, rows=5, row_length=ROW)
  assert all(len(micro) == 5 for micro in packing)
  placed = _pieces(packing)

  responses = [j for _, _, piece in placed for j in piece.responses]
  assert sorted(responses) == sorted(sizes)  # each exactly once
  micros = collections.defaultdict(set)
  for micro, _, piece in placed:
    (example,) = {sizes[j][0] for j in piece.responses}
    assert piece.example == example
    prompts = 1 if share_prompts else len(piece.responses)
    lengths = sum(sizes[j][2] for j in piece.responses)
    assert piece.size == prompts * sizes[piece.responses[0]][1] + lengths
    assert share_prompts or len(piece.responses) == 1
    micros[example].add(micro)
  assert all(len(found) == 1 for found in micros.values())
  assert max(_loads(packing)) <= ROW

  again = pack_fewest(examples, rows=5, row_length=ROW)
  assert again == packing


def _singles(sizes):
  return [
    split_example(i, 0, [(i, int(size))], row_length=99, share_prompts=True)
    for i, size in enumerate(sizes)
  ]


@pytest.mark.parametrize("seed", range(25))
def test_the_fullest_row_got_its_last_piece_when_it_was_the_emptiest(seed):
  """So without that piece it held no more than the average row."""
  rng = np.random.default_rng(seed)
  micro_batches, rows = int(rng.integers(1, 5)), int(rng.integers(1, 6))
  sizes = rng.integers(1, 50, size=rng.integers(1, 60))
  packing = pack(
    _singles(sizes), micro_batches=micro_batches, rows=rows, row_length=9999
  )
  fullest = max(itertools.chain(*packing), key=lambda row: _loads([[row]]))
  last = fullest[-1].size
  assert last == min(piece.size for piece in fullest)  # longest first
  average = (sizes.sum() - last) / (micro_batches * rows)
  assert _loads([[fullest]])[0] - last <= average


@pytest.mark.parametrize("seed", range(10))
def test_no_more_than_a_third_above_the_best_packing(seed):
  """Graham 1969: 4/3 - 1/(3 n) for n rows, against all packings there are."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 50, size=8)
  packing = pack(_singles(sizes), micro_batches=3, rows=1, row_length=9999)
  choices = np.array(list(itertools.product(range(3), repeat=len(sizes))))
  loads = [(sizes * (choices == row)).sum(axis=1) for row in range(3)]
  best = np.max(loads, axis=0).min()
  assert max(_loads(packing)) <= (4 / 3 - 1 / 9) * best


def test_order_by_hand():
  """7, 6, 5, 4, 3 onto 2 x 1 rows: 7 | 6, then 5 to 6, 4 to 7, 3 to 11."""
  examples = _singles([3, 7, 5, 6, 4])
  packing = pack(examples, micro_batches=2, rows=1, row_length=99)
  rows = [[piece.example for piece in rows[0]] for rows in packing]
  assert rows == [[1, 4, 0], [3, 2]]


def test_trees_too_long_for_a_row_are_split():
  lengths = [(7, 20), (8, 20), (9, 20), (10, 34)]
  pieces = split_example(3, 30, lengths, row_length=ROW, share_prompts=True)
  # 30 + 20 leaves no room for another 20: each piece repeats the prompt.
  assert [tuple(piece) for piece in pieces] == [
    (3, (7,), 50), (3, (8,), 50), (3, (9,), 50), (3, (10,), 64),
  ]  # fmt: skip
  pieces = split_example(3, 10, lengths, row_length=ROW, share_prompts=True)
  assert [tuple(piece) for piece in pieces] == [
    (3, (7, 8), 50), (3, (9, 10), 64),
  ]  # fmt: skip


def test_an_example_stays_in_one_micro_batch():
  """Two pieces of 50 do not go with a third, though rows are left elsewhere."""
  pair = split_example(0, 30, [(0, 20), (1, 20)], row_length=ROW,
                       share_prompts=True)  # fmt: skip
  single = split_example(1, 30, [(2, 20)], row_length=ROW, share_prompts=True)
  assert pack([pair, single], micro_batches=1, rows=2, row_length=ROW) is None
  packing = pack_fewest([pair, single], rows=2, row_length=ROW)
  assert [_loads([micro]) for micro in packing] == [[50, 50], [50, 0]]


def test_at_least_so_many_micro_batches():
  examples = _singles([8] * 8)
  assert len(pack_fewest(examples, rows=1, row_length=ROW)) == 1
  packing = pack_fewest(examples, rows=1, row_length=ROW, at_least=3)
  assert [len(micro[0]) for micro in packing] == [3, 3, 2]


def test_nothing_to_pack():
  assert pack_fewest([], rows=2, row_length=ROW) == [[[], []]]


def test_an_example_that_fits_no_micro_batch():
  pair = split_example(0, 30, [(0, 20), (1, 20)], row_length=ROW,
                       share_prompts=True)  # fmt: skip
  with pytest.raises(ValueError, match="does not fit 1 rows of 64"):
    pack_fewest([pair], rows=1, row_length=ROW)


@pytest.mark.parametrize("seed", range(10))
def test_merged_lengths_are_the_cheapest(seed):
  rng = np.random.default_rng(seed)
  lengths = sorted(rng.integers(1, 12, size=rng.integers(1, 12)), reverse=True)
  lengths = tuple(map(int, lengths))
  distinct = sorted(set(lengths), reverse=True)
  for classes in (1, 2, 4):
    merged = merge_lengths(lengths, classes)
    assert len(set(merged)) <= classes
    assert all(a >= b for a, b in zip(merged, lengths, strict=True))
    assert list(merged) == sorted(merged, reverse=True)
    count = min(classes, len(distinct)) - 1
    choices = itertools.combinations(distinct[1:], count)
    cost = lambda each: sum(length * length for length in each)
    best = min(
      cost(min(k for k in (distinct[0], *kept) if k >= n) for n in lengths)
      for kept in choices
    )
    assert cost(merged) == best


def test_round_up():
  assert [round_up(size, 8) for size in (0, 1, 8, 9, 64)] == [8, 8, 8, 16, 64]
  for steps in (4, 8):
    sizes = np.arange(1, 5000)
    rounded = np.array([round_up(int(size), steps) for size in sizes])
    assert (np.diff(rounded) >= 0).all()
    assert (rounded >= sizes).all()
    assert (rounded % 8 == 0).all()
    # At most 1/steps more, or the next multiple of 8.
    assert (rounded - sizes < np.maximum(8, sizes / steps)).all()
    # Few sizes, so few programs: `steps` an octave.
    assert len(set(rounded[(sizes > 1024) & (sizes <= 2048)])) == steps


def _shape(**given):
  sizes = {
    "micro_batches": 2, "rows": 2, "tokens": 32, "sequences": (16, 8),
    "responses": 8, "slots": 4, "comparisons": 2,
  }  # fmt: skip
  return Shape(**{**sizes, **given})


@pytest.mark.parametrize(
  "smaller",
  [
    _shape(),
    _shape(tokens=24),
    _shape(micro_batches=1),
    _shape(sequences=(16,)),
    _shape(sequences=(8, 8)),
    _shape(slots=1),
  ],
)
def test_shapes_cover_smaller_ones(smaller):
  assert _shape().covers(smaller)
  assert smaller.covers(_shape()) == (smaller == _shape())


def test_shapes_join_by_rank():
  joined = _shape(tokens=40, sequences=(16, 8)).join(
    _shape(slots=9, sequences=(12, 12, 4))
  )
  assert joined == _shape(tokens=40, slots=9, sequences=(16, 12, 4))


def test_waste_by_hand():
  """Two rows of 32: a prompt of 5 stands in both, and 4 rows hold nothing."""
  first = split_example(
    0, 5, [(0, 10), (1, 10), (2, 4)], row_length=32, share_prompts=True
  )
  second = split_example(1, 2, [(3, 4)], row_length=32, share_prompts=True)
  split = split_example(
    0, 5, [(0, 10), (1, 10), (2, 4)], row_length=25, share_prompts=True
  )
  assert [len(pieces) for pieces in (first, second, split)] == [1, 1, 2]
  shape = Shape(3, 2, 32, (32,), 32, 8, 8)
  lengths = [5, 2]
  whole = measure_waste([[first, second]], shape, lengths)
  assert whole == Waste(6 * 32, 32 - 29 + 32 - 6, 4 * 32, 0)
  cut = measure_waste([[split[:1], split[1:] + second]], shape, lengths)
  assert cut == Waste(6 * 32, 2 * 32 - 29 - 6 - 5, 4 * 32, 5)
