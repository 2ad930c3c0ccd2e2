"""The rules laid over a prepared folder: a change of rule tokenises nothing."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from jaxpref import config
from jaxpref.config import nearest
from jaxpref.data.cache import Pairing, Prepared
from jaxpref.errors import UserError
from jaxpref.pair.axes import find_ratings, preferences
from jaxpref.pair.rules import compare
from jaxpref.types import Comparison


def with_pairs(
  data: Prepared, rules: config.Pair, axes: Sequence[str] = ()
) -> tuple[Prepared, str]:
  """The examples with the comparisons of `rules`, and what came of it.

  With `axes` a pair is labelled on each of them by its scores there. Which
  pairs: the data's own, else those that the rule makes on any of the axes (on
  `rules.axis` alone, if it is set). One that no axis labels is left out.

  Args:
    data: a whole folder, of which nothing was selected yet.
    rules: see `jaxpref.pair.rules`.
    axes: of a reward model that trains on several.

  Returns: the data themselves, and '', where the rules change nothing.

  Raises UserError for an axis that the data do not have.
  """
  assert data.examples is None
  assert data.mismatch is None
  score = _score(data, rules.axis)
  ratings = find_ratings(data, axes)
  deciding = list(ratings.T) if axes and not rules.axis else [score]
  tied = data.preference == 0.5
  if not data.axes and not (rules.ties == "drop" and tied.any()):
    return data, ""
  counts: Counter[str] = Counter()
  kept = np.ones(len(tied), bool) if axes else _kept(data, score, rules, counts)
  columns, example = _columns(data, kept, deciding, rules, counts)
  labels = _labels(ratings, columns, rules)
  if axes:
    labelled = ~np.isnan(labels).all(axis=1)
    columns, example = columns[:, labelled], example[labelled]
    labels = labels[labelled]
    own = np.diff(data.first_comparison)[example]
    counts["own"] = int(np.count_nonzero(own))
    counts["unlabelled"] = int(np.count_nonzero(~labelled))
  per_example = np.bincount(example, minlength=len(data))
  pairing = Pairing(
    better=columns[0].astype(np.int32),
    worse=columns[1].astype(np.int32),
    preference=columns[2].astype(np.float32),
    weight=columns[3].astype(np.float32),
    first_comparison=np.concatenate([[0], np.cumsum(per_example)]).astype(
      np.int32
    ),
    score=np.where(np.isnan(score), data.score, score),
    ratings=ratings,
    preferences=labels,
  )
  told = _told(data, rules, axes, counts) + _told_labels(axes, labels)
  return dataclasses.replace(data, pairing=pairing), told.strip()


def _columns(
  data: Prepared,
  kept: np.ndarray,
  deciding: Sequence[np.ndarray],
  rules: config.Pair,
  counts: Counter[str],
) -> tuple[np.ndarray, np.ndarray]:
  """better, worse, preference and weight of all pairs; the example of each."""
  own = np.diff(data.first_comparison)
  pairs: list[Any] = [
    Comparison(
      data.better[c], data.worse[c], data.preference[c], data.weight[c]
    )
    for c in np.flatnonzero(kept)
  ]
  example = np.repeat(np.arange(len(data)), own)[kept].tolist()
  for i in np.flatnonzero(own == 0):
    made = _made(data, int(i), deciding, rules, counts)
    pairs += made
    example += [int(i)] * len(made)
  order = np.argsort(example, kind="stable")
  columns = np.array(pairs, np.float64).reshape(-1, 4)[order].T
  return columns, np.array(example, int)[order]


def _labels(
  ratings: np.ndarray, columns: np.ndarray, rules: config.Pair
) -> np.ndarray:
  """How each pair compares on each axis; see `axes.preferences`."""
  better, worse = ratings.astype(np.float64)[columns[:2].astype(int)]
  return preferences(better - worse, rules)


def _score(data: Prepared, axis: str) -> np.ndarray:
  """Of each response, by one axis; NaN where it has none."""
  axes = list(data.axes)
  if axis:
    if axis not in axes:
      names = nearest(axis, axes) if axes else "The data score nothing."
      raise UserError(
        f"config.pair.axis is {axis!r}, and no response has such a score. "
        f"{names}"
      )
    return data.scores[axes.index(axis)].copy()
  score = np.full(len(data.label), np.nan, np.float32)
  sizes = np.diff(data.first_response)
  for values in data.scores:
    lacks = np.add.reduceat(np.isnan(values), data.first_response[:-1])
    whole = np.repeat(lacks == 0, sizes)
    score = np.where(np.isnan(score) & whole, values, score)
  return score


def _kept(
  data: Prepared, score: np.ndarray, rules: config.Pair, counts: Counter[str]
) -> np.ndarray:
  """Which of the data's own comparisons stand."""
  kept = np.ones(len(data.better), bool)
  if rules.ties == "drop":
    kept = data.preference != 0.5
    if rules.margin:
      gap = np.abs(score[data.better] - score[data.worse])
      kept &= ~(gap < rules.margin)  # NaN: not scored, and so no tie
  counts["own"] = int(np.count_nonzero(kept))
  counts["ties"] = len(kept) - counts["own"]
  return kept


def _made(
  data: Prepared,
  example: int,
  deciding: Sequence[np.ndarray],
  rules: config.Pair,
  counts: Counter[str],
) -> list[Comparison]:
  """The pairs that the rule makes on each of the scores, each pair once."""
  first, last = data.first_response[example : example + 2]
  scores = [score[first:last].tolist() for score in deciding]
  made = _compared(scores, rules)
  found = []
  for pair in made:
    better, worse = first + pair.better, first + pair.worse
    if np.array_equal(data.response(better), data.response(worse)):
      counts["same"] += 1
    else:
      found.append(pair._replace(better=better, worse=worse))
  counts["rated"] += int(last - first > 1)
  counts["made"] += len(found)
  everything = dataclasses.replace(rules, ties="keep")
  counts["ties"] += len(_compared(scores, everything)) - len(made)
  return found


def _compared(
  scores: Sequence[Sequence[float]], rules: config.Pair
) -> list[Comparison]:
  found: dict[frozenset[int], Comparison] = {}
  for each in scores:
    for pair in compare(each, rules):
      found.setdefault(frozenset(pair[:2]), pair)
  return list(found.values())


def _told(
  data: Prepared,
  rules: config.Pair,
  axes: Sequence[str],
  counts: Counter[str],
) -> str:
  names = [rules.axis] if rules.axis else axes or list(data.axes)[:1] or [""]
  on = "the score" if len(names) == 1 else "each of the scores"
  axis = ", ".join(map(repr, names))
  parts = []
  if counts["made"] or counts["rated"]:
    parts.append(
      f"pair.rule={rules.rule} on {on} {axis} makes {counts['made']:,} "
      f"comparisons of {counts['rated']:,} rated examples"
    )
  if counts["own"]:
    parts.append(f"{counts['own']:,} comparisons are the data's own")
  if counts["ties"]:
    parts.append(f"{counts['ties']:,} ties are left out (pair.ties=drop)")
  if counts["same"]:
    parts.append(f"{counts['same']:,} of two equal responses are left out")
  if counts["unlabelled"]:
    parts.append(f"{counts['unlabelled']:,} that no axis tells are left out")
  return "; ".join(parts) + "." if parts else ""


def _told_labels(axes: Sequence[str], labels: np.ndarray) -> str:
  counts = np.count_nonzero(~np.isnan(labels), axis=0)
  each = ", ".join(
    f"{count:,} on {axis!r}" for axis, count in zip(axes, counts, strict=True)
  )
  return f" Labels: {each}." if axes else ""
