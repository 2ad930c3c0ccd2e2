"""What stands in a run folder; anything may be missing, torn or not finite."""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any

Row = Mapping[str, Any]  # a line of metrics.jsonl or samples.jsonl


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """The object of a JSON file; empty where there is none."""
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError:
    return {}
  return value if isinstance(value, dict) else {}


def read_lines(path: pathlib.Path) -> list[Row]:
  """The objects of a JSONL file; a line cut off by a kill is left out."""
  rows: list[Row] = []
  if path.is_file():
    # Not splitlines: texts may hold U+2028, which JSON need not escape.
    for text in path.read_text(encoding="utf-8").split("\n"):
      try:
        row = json.loads(text)
      except json.JSONDecodeError:
        continue
      if isinstance(row, dict):
        rows.append(row)
  return rows


def finite(value: Any) -> float | None:
  """The number, or None for anything else: null, text, nan."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  return float(value) if math.isfinite(value) else None


def step_of(row: Row) -> int:
  return int(finite(row.get("step")) or 0)


def series(lines: Sequence[Row], key: str) -> list[tuple[float, float]]:
  """The steps and values of a measure, where it is a finite number."""
  values = ((step_of(line), finite(line.get(key))) for line in lines)
  return [(float(step), value) for step, value in values if value is not None]


def ends(lines: Sequence[Row], key: str) -> tuple[float | None, float | None]:
  """A measure before training, and after it (or as of now)."""
  values = series(lines, key)
  before = values[0][1] if values and values[0][0] == 0 else None
  after = values[-1][1] if values and values[-1][0] > 0 else None
  return before, after


def axes_of(lines: Sequence[Row], key: str) -> list[str]:
  """The axes of a reward model of several: AXIS of each measure KEY/AXIS."""
  start = f"{key}/"
  names = dict.fromkeys(name for line in lines for name in line)
  return [
    name.removeprefix(start)
    for name in names
    if name.startswith(start) and not name.endswith("_stderr")
  ]


def starts_tied(lines: Sequence[Row]) -> bool:
  """Whether policy and reference were one before training.

  Every implicit reward is then zero, and an accuracy that counts what is
  strictly greater is zero too, which says nothing about the model.
  """
  return ends(lines, "eval/rewards/ties")[0] == 1.0
