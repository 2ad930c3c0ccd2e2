"""Which responses are desirable, and answers borrowed from other prompts."""

import numpy as np
import pytest

from jaxpref.data import batch as batches
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError


@pytest.fixture(scope="module")
def ranked(make_prepared):
  """Pairs, a ranking of three, labels of their own, and nothing known."""
  return make_prepared(
    [
      ([1], [[2], [3]], [(1, 0)]),
      ([1, 4], [[5], [6, 7], [8]], [(0, 1), (1, 2), (0, 2)]),
      ([9], [[10], [11, 12]], [], [False, True]),
      ([13], [[14]], [], [None]),
      ([15], [[16], [17]], [(0, 1)], [False, None]),
    ]
  )


def test_labels_are_the_datas_own_or_what_comparisons_say(ranked):
  assert ranked.label.tolist() == [0, 1, 1, -1, 0, 0, 1, -1, 0, 0]
  assert ranked.select([2, 0]).label.tolist() == [0, 1, 0, 1]
  assert not ranked.mismatched.any()


def test_each_prompt_borrows_from_the_one_before_in_its_block(ranked):
  data = ranked.with_mismatched(2, 64)
  answers = [
    [
      data.response(j).tolist()
      for j in range(data.first_response[i], data.first_response[i + 1])
    ]
    for i in range(len(data))
  ]
  # Blocks 0-1 and 2-4: one example alone would have none to borrow from.
  assert answers == [
    [[2], [3], [5], [6, 7], [8]],
    [[5], [6, 7], [8], [2], [3]],
    [[10], [11, 12], [16], [17]],
    [[14], [10], [11, 12]],
    [[16], [17], [14]],
  ]
  own = [2, 3, 2, 1, 2]
  for i, count in enumerate(own):
    here = slice(data.first_response[i], data.first_response[i + 1])
    kinds = data.mismatched[here].tolist()
    assert kinds == [False] * count + [True] * (len(kinds) - count)
    assert set(data.label[here][count:]) <= {-1}
  before = [(ranked.response(j).tolist(), ranked.label[j]) for j in range(10)]
  own = np.flatnonzero(~data.mismatched)
  after = [(data.response(j).tolist(), data.label[j]) for j in own]
  assert after == before
  pairs = [
    (data.response(b).tolist(), data.response(w).tolist())
    for b, w in zip(data.better, data.worse, strict=True)
  ]
  assert pairs[0] == ([3], [2])
  assert pairs[-1] == ([16], [17])
  assert data.fingerprint != ranked.fingerprint
  assert data.first_token[-1] == data.response_lengths.sum()


@pytest.mark.parametrize("block", [2, 3, 4, 5, 64])
def test_nothing_borrows_from_itself(make_prepared, block):
  data = make_prepared([([1], [[i]], []) for i in range(2, 9)])
  found = data.with_mismatched(block, 64)
  tokens = [found.response(j).item() for j in range(14)]
  own, other = np.array(tokens).reshape(7, 2).T
  assert own.tolist() == list(range(2, 9))
  assert not (own == other).any()
  assert sorted(other) == list(range(2, 9))


def _borrowed(data):
  """The first tokens of the responses that were borrowed, in order."""
  return [int(data.response(j)[0]) for j in np.flatnonzero(data.mismatched)]


def test_an_answer_to_the_same_prompt_is_not_borrowed(make_prepared):
  """As where each row is one of several answers to a prompt."""
  prompts = [1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 5]
  data = make_prepared([([p], [[10 + i]], []) for i, p in enumerate(prompts)])
  # Blocks 0-3, 4-7 and 8-10; the second holds one prompt only.
  found = _borrowed(data.with_mismatched(4, 64))
  assert found == [12, 13, 10, 11, 17, 14, 15, 16, 20, 18, 19]
  found = _borrowed(data.with_mismatched(16, 64))
  assert sorted(found) == list(range(10, 21))
  assert all(prompts[i] != prompts[j - 10] for i, j in enumerate(found))


def test_what_is_borrowed_fits_the_length(make_prepared):
  pairs = [([1] * 5, [[2] * 3]), ([1, 3], [[4] * 6, [5]])]
  data = make_prepared([(*each, []) for each in pairs])
  assert data.max_length == 8
  whole, cut = (data.with_mismatched(2, size) for size in (11, 8))
  assert whole.response_lengths.tolist() == [3, 6, 1, 6, 1, 3]
  assert cut.response_lengths.tolist() == [3, 3, 1, 6, 1, 3]
  assert cut.max_length == 8
  assert cut.response(1).tolist() == [4, 4, 4]
  assert cut.fingerprint != whole.fingerprint
  assert cut.first_token[-1] == 17
  Steps(cut, batch_size=2, rows=1, row_length=32)


def test_one_example_has_none_to_borrow_from(make_prepared):
  data = make_prepared([([1], [[2], [3]], [(0, 1)])])
  with pytest.raises(UserError, match="needs two examples at least"):
    data.with_mismatched(8, 64)
  two = make_prepared([([1], [[2]], [])] * 2)
  with pytest.raises(UserError, match="batch_size above 1"):
    two.with_mismatched(1, 64)


def test_slots_carry_them(ranked):
  data = ranked.with_mismatched(5, 64)
  steps = Steps(data, batch_size=5, rows=2, row_length=32)
  slots = steps[0].slots
  packing, shape = steps.packing(0)
  assert len(packing) == 1
  numbers = list(batches._slot_numbers(packing[0]))
  assert sorted(numbers) == list(range(20))
  assert slots.label[0, :20].tolist() == data.label[numbers].tolist()
  assert slots.mismatched[0, :20].tolist() == data.mismatched[numbers].tolist()
  assert slots.mismatched.sum() == slots.mismatched[slots.valid].sum() == 10
  assert shape.comparisons >= 5


def test_undesirable_answers_are_not_imitated(ranked):
  imitated = [[3], [5], [11, 12], [14]]
  assert [
    ranked.response(j).tolist() for j in np.flatnonzero(ranked.imitated)
  ] == imitated
  steps = Steps(
    ranked, batch_size=5, rows=2, row_length=32, kept=ranked.imitated
  )
  batch = steps[0]
  kept = np.unique(batch.target[batch.slot < steps.shape.slots])
  assert kept.tolist() == [3, 5, 11, 12, 14]
