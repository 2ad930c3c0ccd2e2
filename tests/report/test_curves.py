"""Which charts a run gets."""

import math

import pytest

from jaxpref.report.curves import curves

_TIED = {"step": 0, "eval/rewards/accuracies": 0.0, "eval/rewards/ties": 1.0}
_LATER = {"step": 8, "eval/rewards/accuracies": 0.9, "eval/rewards/ties": 0.0}


def test_only_what_was_logged():
  rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "grad_norm": 1.0}]
  titles = [chart.title for chart in curves(rows, "sft")]
  assert titles == ["Loss", "Gradient norm"]
  assert curves([], "dpo") == []


def test_what_is_not_finite_is_left_out():
  values = [1.0, math.nan, math.inf, None, 2.0]
  rows = [
    {"step": i, "loss": value, "grad_norm": None}
    for i, value in enumerate(values)
  ]
  (chart,) = curves(rows, "dpo")
  assert chart.lines[0].points == [(0.0, 1.0), (4.0, 2.0)]


@pytest.mark.parametrize(("loss", "level"), [("dpo", True), ("ipo", False)])
def test_level_of_agreement(loss, level):
  (chart,) = curves([{"step": 1, "loss": 0.5}], loss)
  assert (chart.level is not None) == level


def test_what_only_some_losses_have():
  row = {"step": 1, "kl": 0.2, "eval/kl": 0.1, "nll": 2.0}
  nll, kl = curves([row], "kto")
  assert (nll.title, kl.title) == ("Likelihood term", "KL estimate")
  assert [line.name for line in kl.lines] == ["train", "held-out"]


def test_held_out_values_are_marked():
  rows = [{"step": 0, "eval/loss": 2.0}, {"step": 1, "loss": 1.0}]
  (chart,) = curves(rows, "sft")
  marks = {line.name: line.marks for line in chart.lines}
  assert marks == {"train": False, "held-out": True}


def test_ties_at_the_start_are_not_drawn_as_failure():
  (chart,) = curves([_TIED, _LATER], "dpo")
  assert [line.points for line in chart.lines] == [[(8.0, 0.9)]]
  (chart,) = curves([{**_TIED, "eval/rewards/ties": 0.5}, _LATER], "dpo")
  assert len(chart.lines[0].points) == 2


@pytest.mark.parametrize(("pairs", "shown"), [(0.0, 7.0), (3.0, 3.0)])
def test_speed_counts_tokens_where_there_are_no_pairs(pairs, shown):
  row = {"step": 1, "pairs_per_second": pairs, "tokens_per_second": 7.0}
  (chart,) = curves([row], "sft")
  assert [line.points for line in chart.lines] == [[(1.0, shown)]]


def test_the_sources_of_a_mixture():
  rows = [
    {"step": i, "examples/own": 3.0 * i, "examples/hh": 1.0 * i} for i in (1, 2)
  ]
  (chart,) = curves(rows, "dpo")
  assert chart.title == "Examples seen"
  assert [(line.name, line.points[-1]) for line in chart.lines] == [
    ("hh", (2.0, 2.0)),
    ("own", (2.0, 6.0)),
  ]
