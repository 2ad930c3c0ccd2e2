"""Labels on several axes: which pairs, on which axes, and which way."""

import math

import numpy as np
import pytest

from jaxpref.config import Pair
from jaxpref.data.batch import batch_shapes, make_batch
from jaxpref.data.joined import join
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.pair import check_axes, with_pairs
from jaxpref.pair.axes import preferences

NAN = math.nan


@pytest.fixture(scope="module")
def rated(make_prepared):
  """Axes that disagree, that are not rated, and that see a tie."""
  scores = [
    [{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": 1.0}],
    [{"a": 5.0}, {"a": 4.0}],  # not rated on b
    [{"a": 2.0, "b": 1.0}, {"a": 2.0, "b": 3.0}],  # a tie on a
    [{"b": 1.0}, {"a": 1.0}],  # of which no axis tells
    [{"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0}],  # the data's own pair
  ]
  return make_prepared(
    [
      (
        [1, 2],
        [[3 + j] * (j + 1) for j in range(len(each))],
        [(0, 1, 0.5)] if i == 4 else [],
        None,
        each,
      )
      for i, each in enumerate(scores)
    ]
  )


def _pairs(data):
  """(better, worse) -> the labels, responses numbered over all."""
  return {
    (int(b), int(w)): labels.tolist()
    for b, w, labels in zip(
      data.better, data.worse, data.preferences, strict=True
    )
  }


def test_each_axis_adds_its_pairs_and_labels_all(rated):
  paired, told = with_pairs(rated, Pair(), ("b", "a"))
  np.testing.assert_array_equal(paired.ratings, rated.scores[[1, 0]].T)
  found = _pairs(paired)
  # (0, 2) by b, where a says the opposite; (1, 0) by a, where b does.
  assert list(found) == [(0, 2), (1, 0), (3, 4), (6, 5), (9, 10)]
  expected = [[1, 0], [0, 1], [NAN, 1], [1, NAN], [1, 0]]
  np.testing.assert_array_equal(list(found.values()), expected)
  assert "on each of the scores 'b', 'a' makes 4" in told
  assert told.endswith("Labels: 4 on 'b', 4 on 'a'.")
  check_axes(paired, ("b", "a"), compared=True)


def test_rules_hold_on_each_axis(rated):
  kept, _ = with_pairs(rated, Pair(ties="keep"), ("a", "b"))
  assert _pairs(kept)[5, 6] == [0.5, 0.0]
  one, told = with_pairs(rated, Pair(axis="a"), ("a", "b"))
  assert (0, 2) not in _pairs(one)
  assert "on the score 'a' makes 2" in told
  gap = np.array([[0.25, -0.25, NAN, 0.0], [1.0, -1.0, 2.0, -2.0]])
  soft = [[0.625, 0.375, NAN, 0.5], [1.0, 0.0, 1.0, 0.0]]
  rules = Pair(margin=1.0, ties="soften")
  np.testing.assert_array_equal(preferences(gap, rules), soft)


def test_without_axes_nothing_is_labelled(rated):
  paired, _ = with_pairs(rated, Pair())
  assert paired.ratings.shape == (len(rated.label), 0)
  assert paired.preferences.shape == (len(paired.better), 0)
  batch = Steps(paired, batch_size=5, rows=1, row_length=64)[0]
  assert batch.slots.ratings is batch.comparisons.preferences is None


def test_labels_travel_with_their_responses(rated, make_prepared):
  """Selected, taken apart, joined to other data and put into a batch."""
  paired, _ = with_pairs(rated, Pair(), ("a", "b"))
  found = _pairs(paired.select([2, 0]))
  assert list(found) == [(1, 0), (3, 2), (2, 4)]
  expected = [[NAN, 1], [1, 0], [0, 1]]
  np.testing.assert_array_equal(list(found.values()), expected)
  apart = paired.by_comparison()
  np.testing.assert_array_equal(apart.preferences, paired.preferences)
  sides = paired.ratings[np.stack([paired.better, paired.worse], 1).ravel()]
  np.testing.assert_array_equal(apart.ratings, sides)
  other = make_prepared([([1], [[2], [3]], [], None, [{"c": 1}, {"c": 0}])])
  more, _ = with_pairs(other, Pair(), ("a", "c"))
  whole = join({"one": with_pairs(rated, Pair(), ("a", "c"))[0], "two": more})
  np.testing.assert_array_equal(whole.ratings[-2:], [[NAN, 1], [NAN, 0]])
  np.testing.assert_array_equal(whole.preferences[-1], [NAN, 1])
  check_axes(whole, ("a", "c"), compared=True)
  steps = Steps(paired, batch_size=5, rows=1, row_length=16)
  packing, shape = steps.packing(0)
  batch = make_batch(paired, packing, shape)
  assert shape.micro_batches > 1
  for m, micro in enumerate(packing):
    here = [j for row in micro for piece in row for j in piece.responses]
    np.testing.assert_array_equal(
      batch.slots.ratings[m, : len(here)], paired.ratings[here]
    )
    assert np.isnan(batch.slots.ratings[m, len(here) :]).all()
    pairs = batch.comparisons
    assert np.isnan(pairs.preferences[m][~pairs.valid[m]]).all()
    assert not np.isnan(pairs.preferences[m][pairs.valid[m]]).all(axis=1).any()
  shapes = batch_shapes(shape, cached=False, axes=2)
  assert shapes.slots.ratings.shape == batch.slots.ratings.shape
  assert shapes.comparisons.preferences.shape == (
    batch.comparisons.preferences.shape
  )


def test_axes_of_which_nothing_is_learned(rated, make_prepared):
  with pytest.raises(
    UserError, match=r"No response has a score 'c', 'd'; the "
  ):
    with_pairs(rated, Pair(), ("c", "d"))
  paired, _ = with_pairs(rated, Pair(), ("a", "c"))  # another source may
  with pytest.raises(UserError, match=r"score 'c'; the data have 'a', 'b'\. "):
    check_axes(paired, ("a", "c"), compared=True)
  plain = make_prepared([([1], [[2], [3]], [(0, 1)])])
  with pytest.raises(UserError, match=r"The data score nothing\. Give rows"):
    with_pairs(plain, Pair(), ("a", "b"))
  some = with_pairs(rated, Pair(), ("a", "b"))[0].select([1])
  with pytest.raises(UserError, match=r"are compared on 'b', .*rule=all_pairs"):
    check_axes(some, ("a", "b"), compared=True)
  with pytest.raises(UserError, match="no response is rated on 'b', so that"):
    check_axes(some, ("a", "b"), compared=False)
