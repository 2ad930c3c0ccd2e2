"""Comparisons of scored responses, by named rules.

    best_worst  the best against the worst: one a prompt
    best_rest   the best against each of the others
    adjacent    each against the next worse
    all_pairs   each against each

Two whose scores are equal, or differ by less than `margin`, are a tie:

    drop    no comparison
    keep    a comparison of preference 0.5, which pulls the two together
    soften  of preference 0.5 + 0.5 gap / margin: the nearer, the less sure

Comparisons that the data bring themselves stand; of their ties (preference
0.5) `drop` leaves them out.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import math

from jaxpref import config
from jaxpref.types import Comparison, Record


def compare(scores: Sequence[float], rules: config.Pair) -> list[Comparison]:
  """The comparisons of responses with these scores, by number.

  Args:
    scores: larger is better; NaN is in no comparison.
    rules: `rule`, `margin` and `ties` are read.
  """
  scored = [i for i, score in enumerate(scores) if not math.isnan(score)]
  # A stable sort: equals stay in the order of the data.
  order = sorted(scored, key=lambda i: -scores[i])
  found = []
  for better, worse in _RULES[rules.rule](order):
    sure = preference(scores[better] - scores[worse], rules)
    if sure is not None:
      found.append(Comparison(better, worse, sure))
  return found


def preference(gap: float, rules: config.Pair) -> float | None:
  """P(better ≻ worse) by how far apart the scores are; None: no comparison."""
  if gap > 0 and gap >= rules.margin:
    return 1.0
  if rules.ties == "drop":
    return None
  soft = rules.ties == "soften" and gap > 0
  return 0.5 + 0.5 * gap / rules.margin if soft else 0.5


def pair_record(record: Record, rules: config.Pair) -> Record:
  """The record with the comparisons that the rules make of it."""
  if record.comparisons:
    kept = [
      each
      for each in record.comparisons
      if rules.ties != "drop" or each.preference != 0.5
    ]
    return dataclasses.replace(record, comparisons=kept)
  axis = rules.axis or _first_axis(record)
  if not axis:
    return record
  scores = [each.scores.get(axis, math.nan) for each in record.responses]
  made = [
    each
    for each in compare(scores, rules)
    if record.responses[each.better].content
    != record.responses[each.worse].content
  ]
  return dataclasses.replace(record, comparisons=made)


def _first_axis(record: Record) -> str:
  """The first score that all of its responses have."""
  names = [set(each.scores) for each in record.responses]
  shared = set.intersection(*names)
  return next((n for n in record.responses[0].scores if n in shared), "")


Pairs = Iterator[tuple[int, int]]


def _best_worst(order: list[int]) -> Pairs:
  return iter([(order[0], order[-1])] if len(order) > 1 else [])


def _best_rest(order: list[int]) -> Pairs:
  return ((order[0], other) for other in order[1:])


_RULES: dict[str, Callable[[list[int]], Pairs]] = {
  "best_worst": _best_worst,
  "best_rest": _best_rest,
  "adjacent": itertools.pairwise,
  "all_pairs": lambda order: itertools.combinations(order, 2),
}
