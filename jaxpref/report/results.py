"""What a run changed: the table of results and the sentence above it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from typing import NamedTuple

from jaxpref.report.numbers import number, percent
from jaxpref.report.read import (
  Row,
  axes_of,
  ends,
  finite,
  series,
  starts_tied,
  step_of,
)

_Pair = tuple[float | None, float | None]  # before, after


class Result(NamedTuple):
  """A row of the table."""

  name: str
  help: str
  before: str
  after: str
  change: str = ""
  better: bool | None = None  # whether the change is one for the better


def results(lines: Sequence[Row], samples: Sequence[Row]) -> list[Result]:
  """The held-out measures and the scores of samples, before and after.

  A run without any of them shows its training loss.
  """
  rows = [*_held_out(lines), *_sample_scores(samples)]
  losses = series(lines, "loss")
  if not rows and len(losses) > 1:
    about = "of the first and the last logged step"
    pair = (losses[0][1], losses[-1][1])
    rows.append(_result("Training loss", about, pair, text=number, sign=-1))
  return rows


def headline(lines: Sequence[Row], rows: Sequence[Result]) -> str:
  """The result in one sentence."""
  before, after = ends(lines, "eval/logps/accuracies")
  if after is not None:
    start = "." if before is None else f", from {percent(before)}."
    return (
      f"The preferred answer is the likelier one in {percent(after)} of "
      f"held-out comparisons{start}"
    )
  for row in rows:
    if row.after != "–":
      start = "" if row.before == "–" else f", from {row.before}"
      return f"{row.name}: {row.after}{start}."
  return "No result has been logged yet."


def _held_out(lines: Sequence[Row]) -> Iterator[Result]:
  accuracy = "eval/rewards/accuracies"
  axes = {"": "", **{f"/{x}": f" on {x}" for x in axes_of(lines, accuracy)}}
  for key, name, text, sign, about in (
    *((f"{accuracy}{axis}", f"Reward accuracy{told}", percent, 1,
       "held-out comparisons where the preferred answer has the larger reward")
      for axis, told in axes.items()),
    ("eval/logps/accuracies", "Preferred answer is the likelier one", percent,
     1, "held-out comparisons where the model gives it more probability"),
    ("eval/rewards/margins", "Reward margin", number, 1,
     "held-out mean of preferred minus other reward"),
    ("eval/loss", "Held-out loss", number, -1, ""),
  ):  # fmt: skip
    pair = ends(lines, key)
    if pair == (None, None):
      continue
    errors = ends(lines, f"{key}_stderr")
    row = _result(name, about, pair, errors, text=text, sign=sign)
    if key.startswith(accuracy) and starts_tied(lines):
      row = row._replace(before="all ties", change="", better=None)
    yield row


def _sample_scores(samples: Sequence[Row]) -> Iterator[Result]:
  last = max((step_of(sample) for sample in samples), default=0)
  scores: dict[str, tuple[list[float], list[float]]] = {}
  for sample in samples:
    given = sample.get("scores")
    for name, value in (given if isinstance(given, Mapping) else {}).items():
      score = finite(value)
      if score is not None and step_of(sample) in (0, last):
        columns = scores.setdefault(str(name), ([], []))
        columns[step_of(sample) > 0].append(score)
  for name, columns in scores.items():
    means, errors = zip(*map(_mean_and_error, columns))
    share = all(score in (0.0, 1.0) for column in columns for score in column)
    yield _result(
      "Samples that match the pattern"
      if name == "pattern"
      else f"Score of samples: {name}",
      f"mean of {max(map(len, columns)):,} samples",
      means,
      errors,
      text=percent if share else number,
      sign=1,
    )


def _mean_and_error(values: Sequence[float]) -> _Pair:
  if not values:
    return None, None
  mean = math.fsum(values) / len(values)
  square = math.fsum((value - mean) ** 2 for value in values) / len(values)
  return mean, math.sqrt(square / len(values))


def _result(
  name: str,
  about: str,
  pair: _Pair,
  errors: _Pair = (None, None),
  *,
  text: Callable[[float], str],
  sign: int,
) -> Result:
  before, after = pair
  cells = [_cell(value, error, text) for value, error in zip(pair, errors)]
  row = Result(name, about, before=cells[0], after=cells[1])
  if before is None or after is None:
    return row
  change = after - before
  size = (
    f"{100 * abs(change):.1f} points" if text is percent else text(abs(change))
  )
  sign_text = "−" if change < 0 else "+"
  better = None if change == 0 else change * sign > 0
  return row._replace(change=f"{sign_text}{size}", better=better)


def _cell(
  value: float | None, error: float | None, text: Callable[[float], str]
) -> str:
  if value is None:
    return "–"
  return text(value) + (f" ±\N{NO-BREAK SPACE}{text(error)}" if error else "")
