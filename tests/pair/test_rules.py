"""Which responses the rules compare, and how sure each comparison is."""

import math

import numpy as np
import pytest

from jaxpref import config, losses
from jaxpref.config import Pair
from jaxpref.errors import UserError
from jaxpref.fit.usable import kept_responses
from jaxpref.pair import compare, pair_record, with_pairs
from jaxpref.types import Comparison, Record, Response

SCORES = [2.0, 9.0, math.nan, 8.5, 4.0]


@pytest.mark.parametrize(
  ("rule", "pairs"),
  [
    ("best_worst", [(1, 0)]),
    ("best_rest", [(1, 3), (1, 4), (1, 0)]),
    ("adjacent", [(1, 3), (3, 4), (4, 0)]),
    ("all_pairs", [(1, 3), (1, 4), (1, 0), (3, 4), (3, 0), (4, 0)]),
  ],
)
def test_each_rule_compares_what_its_name_says(rule, pairs):
  assert rule in config.checks.CHOICES["pair.rule"]
  found = compare(SCORES, Pair(rule=rule))
  assert found == [(better, worse, 1.0, 1.0) for better, worse in pairs]
  assert compare([math.nan, 1.0], Pair(rule=rule)) == []
  assert compare([], Pair(rule=rule)) == []


@pytest.mark.parametrize(
  ("ties", "preferences"),
  [("drop", []), ("keep", [0.5, 0.5]), ("soften", [0.625, 0.5])],
)
def test_ties_and_what_is_nearer_than_the_margin(ties, preferences):
  rules = Pair(rule="adjacent", margin=2.0, ties=ties)
  found = compare([5.0, 4.5, 4.5, 2.5], rules)
  assert found[:-1] == [
    (i, i + 1, sure, 1.0) for i, sure in enumerate(preferences)
  ]
  assert found[-1] == (2, 3, 1.0, 1.0)  # exactly the margin apart


def test_without_a_margin_only_equals_are_ties():
  equal = [3.0, 3.0]
  assert compare(equal, Pair()) == []
  for ties in ("keep", "soften"):
    assert compare(equal, Pair(ties=ties)) == [(0, 1, 0.5, 1.0)]
  assert compare([3.0, 2.999], Pair()) == [(0, 1, 1.0, 1.0)]


def _rated(*scores, comparisons=()):
  responses = [Response(f"r{i}", scores=each) for i, each in enumerate(scores)]
  return Record("a:1", "q", responses, comparisons)


def test_a_record_is_compared_by_the_first_score_all_have_or_a_named_one():
  record = _rated({"x": 1.0}, {"y": 3.0, "x": 2.0}, {"x": 0.0, "y": 4.0})
  assert pair_record(record, Pair()).comparisons == [(1, 2, 1.0, 1.0)]
  by_y = pair_record(record, Pair(axis="y"))
  assert by_y.comparisons == [(2, 1, 1.0, 1.0)]
  assert pair_record(_rated({}, {"x": 1.0}), Pair()).comparisons == ()


def test_comparisons_of_the_data_stand_but_for_dropped_ties():
  own = [Comparison(1, 0), Comparison(0, 2, 0.5), Comparison(1, 2, 0.7)]
  record = _rated({"x": 9.0}, {"x": 1.0}, {"x": 1.0}, comparisons=own)
  assert pair_record(record, Pair()).comparisons == [own[0], own[2]]
  assert pair_record(record, Pair(ties="keep")).comparisons == own


@pytest.fixture(scope="module")
def rated(make_prepared):
  """Two rated prompts, a pair, a tie, an answer alone; the last rated pair
  is of equal tokens."""
  score = lambda *values: [{"x": v, "y": -v} for v in values]
  return make_prepared(
    [
      ([1], [[2], [3], [4]], [], None, score(5.0, 7.0, 7.0)),
      ([1], [[5], [6]], [(1, 0)]),
      ([1], [[7], [8]], [(0, 1, 0.5)]),
      ([1], [[9]], []),
      ([1, 1], [[2], [3]], [], None, score(0.0, 1.0)),
      ([1, 2], [[2], [2]], [], None, score(0.0, 1.0)),
    ]
  )


def _pairs(data):
  """Example -> (better, worse) by first token, and how sure."""
  bounds = data.first_comparison
  return [
    [
      (*(int(data.response(side[c])[0]) for side in (data.better, data.worse)),
       float(data.preference[c]))
      for c in range(*bounds[i : i + 2])
    ]
    for i in range(len(data))
  ]  # fmt: skip


def test_a_prepared_folder_is_compared_as_its_records_are(rated):
  paired, told = with_pairs(rated, Pair())
  assert _pairs(paired) == [[(3, 2, 1.0)], [(6, 5, 1.0)], [], [], [(3, 2, 1.0)],
                            []]  # fmt: skip
  assert told == (
    "pair.rule=best_worst on the score 'x' makes 2 comparisons of 3 rated "
    "examples; 1 comparisons are the data's own; 1 ties are left out "
    "(pair.ties=drop); 1 of two equal responses are left out."
  )
  kept, _ = with_pairs(rated, Pair(rule="adjacent", ties="keep"))
  assert _pairs(kept)[0] == [(3, 4, 0.5), (4, 2, 1.0)]
  assert _pairs(kept)[2] == [(7, 8, 0.5)]
  reverse, _ = with_pairs(rated, Pair(axis="y"))
  assert _pairs(reverse)[0] == [(2, 4, 1.0)]
  assert paired.better.dtype == paired.first_comparison.dtype == np.int32
  assert paired.fingerprint == rated.fingerprint


def test_scores_labels_and_choices_follow_the_comparisons(rated):
  paired, _ = with_pairs(rated, Pair())
  np.testing.assert_array_equal(
    paired.score, [5, 7, 7, -1, 1, 0, 0, np.nan, 0, 1, 0, 1]
  )
  assert paired.label.tolist()[:7] == [0, 1, -1, 0, 1, -1, -1]
  assert paired.compared.tolist() == [
    *(True, True, False), *(True, True), *(False, False), False,
    *(True, True), *(False, False),
  ]  # fmt: skip
  # The middle one is not computed, unless the loss ranks.
  kept = kept_responses(paired, losses.dpo)
  np.testing.assert_array_equal(kept, paired.compared)
  assert kept_responses(paired, losses.lipo)[:3].all()
  chosen = paired.select([4, 1])
  assert _pairs(chosen) == [[(3, 2, 1.0)], [(6, 5, 1.0)]]
  np.testing.assert_array_equal(chosen.score, [0, 1, -1, 1])


def test_pairs_alone_stay_as_they_are(make_prepared):
  data = make_prepared([([1], [[2], [3]], [(0, 1, 0.8)])])
  same, told = with_pairs(data, Pair(rule="all_pairs"))
  assert same is data
  assert told == ""


def test_an_axis_that_is_not_there_is_named(rated, make_prepared):
  with pytest.raises(UserError, match=r"axis is 'z'.*Known: x, y"):
    with_pairs(rated, Pair(axis="z"))
  plain = make_prepared([([1], [[2], [3]], [(0, 1)])])
  with pytest.raises(UserError, match="The data score nothing"):
    with_pairs(plain, Pair(axis="x"))
