"""The table of results and its sentence."""

import pytest

from jaxpref.report.results import Result, headline, results


def _lines(key, *values):
  return [{"step": 10 * i, key: value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
  ("key", "values", "change", "better"),
  [
    ("eval/loss", (2.0, 1.5), "−0.5", True),
    ("eval/loss", (2.0, 2.5), "+0.5", False),
    ("eval/logps/accuracies", (0.5, 0.75), "+25.0 points", True),
    ("eval/rewards/margins", (0.5, 0.5), "+0", None),
  ],
)
def test_change_and_its_direction(key, values, change, better):
  (row,) = results(_lines(key, *values), [])
  assert (row.change, row.better) == (change, better)


def test_first_and_last_evaluation_count():
  (row,) = results(_lines("eval/loss", 4.0, 3.0, 2.0), [])
  assert (row.before, row.after) == ("4", "2")


def test_unfinished_run():
  (row,) = results(_lines("eval/loss", 4.0), [])
  assert row == Result("Held-out loss", "", "4", "–")
  assert headline([], [row]) == "No result has been logged yet."


def test_a_reference_that_is_not_the_start_counts_from_the_start():
  lines = _lines("eval/rewards/accuracies", 0.25, 0.75)
  lines[0]["eval/rewards/ties"] = 0.1
  (row,) = results(lines, [])
  assert row.before.startswith("25.0")
  lines[0]["eval/rewards/ties"] = 1.0
  (row,) = results(lines, [])
  assert (row.before, row.change) == ("all ties", "")


def test_each_axis_of_a_reward_model_has_a_row():
  lines = _lines("eval/rewards/accuracies", 0.25, 0.75)
  lines[1] |= {
    "eval/rewards/accuracies/wit": 0.5,
    "eval/rewards/accuracies/wit_stderr": 0.125,
  }
  row, wit = results(lines, [])
  assert (row.name, wit.name) == ("Reward accuracy", "Reward accuracy on wit")
  assert wit.after.replace("\xa0", " ") == "50.0 % ± 12.5 %"


def test_scores_of_samples():
  samples = [
    {"step": step, "scores": {"pattern": float(good), "reward": 2.0 * good}}
    for step, good in ((0, 0), (0, 1), (5, 0), (10, 1), (10, 1))
  ]
  samples.append({"step": 10, "scores": {"pattern": float("nan")}})
  samples.append({"step": 10})
  pattern, reward = results([], samples)
  assert pattern.name == "Samples that match the pattern"
  assert pattern.before.replace("\xa0", " ") == "50.0 % ± 35.4 %"
  assert pattern.after.replace("\xa0", " ") == "100.0 %"
  assert (reward.before.replace("\xa0", " "), reward.after) == (
    "1 ± 0.7071", "2",
  )  # fmt: skip


def test_training_loss_where_there_is_nothing_else():
  lines = [{"step": 1, "loss": 3.0}, {"step": 9, "loss": 1.0}]
  (row,) = results(lines, [])
  assert (row.name, row.before, row.after) == ("Training loss", "3", "1")
  assert headline(lines, [row]) == "Training loss: 1, from 3."
