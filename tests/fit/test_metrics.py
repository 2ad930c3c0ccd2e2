import json
import math

import numpy as np
import pytest

from jaxpref.fit.metrics import RunLog, averages, read_metrics
from jaxpref.types import Term


@pytest.fixture
def write_run(tmp_path):
  """write_run(start, steps) writes these steps' lines in the run folder."""

  def write(start, steps, stop=6):
    log = RunLog(tmp_path, start=start, stop=stop)
    for step in steps:
      log.write(step, {"loss": 1.0 / (step + 1)})
    log.close()

  return write


def test_averages_are_sums_by_counts():
  terms = {
    "loss": Term(np.float32(3.0), np.float32(4.0)),
    "empty": Term(np.float32(0.0), np.float32(0.0)),
  }
  assert averages(terms) == {"loss": 0.75}


def test_lines_are_there_before_the_run_ends(tmp_path):
  log = RunLog(tmp_path, start=0, stop=2)
  log.write(1, {"loss": 0.5, "rewards/margins": -0.25})
  told = [{"step": 1, "loss": 0.5, "rewards/margins": -0.25}]
  assert read_metrics(tmp_path) == told
  log.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path, value):
  log = RunLog(tmp_path, start=0, stop=1)
  log.write(1, {"loss": value})
  log.close()
  line = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(line, parse_constant=pytest.fail) == {
    "step": 1,
    "loss": None,
  }


def test_resumed_run_has_every_step_once(tmp_path, write_run):
  write_run(0, range(5))  # killed after step 4; step 2 was the last one saved
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "lo')  # while it wrote
  write_run(2, range(3, 7))
  steps = [line["step"] for line in read_metrics(tmp_path)]
  assert steps == list(range(7))


def test_run_that_begins_anew_keeps_nothing(tmp_path, write_run):
  write_run(0, range(2))  # killed before it saved anything
  write_run(0, range(4))
  steps = [line["step"] for line in read_metrics(tmp_path)]
  assert steps == list(range(4))


def test_torn_last_line_is_left_out(tmp_path, write_run):
  write_run(0, range(1, 4))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[:-5])
  assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_no_metrics_yet(tmp_path):
  assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
  ("values", "told"),
  [
    (
      {"loss": 0.5, "rewards/accuracies": 0.75, "pairs_per_second": 12.0},
      ("loss=0.5", "accuracy=0.75", "pairs/s=12"),
    ),
    (
      {"loss": 2.0, "pairs_per_second": 0.0, "tokens_per_second": 34.0},
      ("loss=2", "tokens/s=34"),
    ),
  ],
  ids=["pairs", "tokens"],
)
def test_bar_shows_what_people_look_at(tmp_path, capsys, values, told):
  log = RunLog(tmp_path, start=0, stop=2)
  log.progress(2, values)
  log.close()
  shown = capsys.readouterr().err
  assert all(each in shown for each in (*told, "2/2"))


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("jax.process_index", lambda: 1)
  log = RunLog(tmp_path, start=0, stop=1)
  log.write(1, {"loss": 0.5})
  log.progress(1, {"loss": 0.5})
  log.close()
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr().err == ""
