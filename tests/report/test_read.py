"""What stands in a run folder, whatever state it is in."""

import math

import pytest

from jaxpref.report.read import ends, finite, read_lines, read_object, series


def test_lines_that_cannot_be_read_are_left_out(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text(
    '{"step": 1, "text": "a\u2028b"}\n\n[1]\nnot json\n{"step": 2}\n{"st',
    encoding="utf-8",
  )
  assert [row["step"] for row in read_lines(path)] == [1, 2]
  assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": ', "3"])
def test_object_of_a_broken_file_is_empty(tmp_path, text):
  (tmp_path / "data.json").write_text(text)
  assert read_object(tmp_path / "data.json") == {}


@pytest.mark.parametrize(
  ("value", "number"),
  [(1, 1.0), (0.5, 0.5), (None, None), (True, None), ("1", None),
   (math.nan, None), (-math.inf, None)],
)  # fmt: skip
def test_finite(value, number):
  assert finite(value) == number


def test_series_and_ends():
  lines = [
    {"step": 0, "eval/x": 1.0},
    {"step": 1, "x": 5.0},
    {"step": 2, "eval/x": None},
    {"step": 3, "eval/x": 2.0},
  ]
  assert series(lines, "eval/x") == [(0.0, 1.0), (3.0, 2.0)]
  assert ends(lines, "eval/x") == (1.0, 2.0)
  assert ends(lines, "x") == (None, 5.0)
  assert ends(lines[:1], "eval/x") == (1.0, None)
