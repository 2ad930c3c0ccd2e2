"""Which charts a run gets."""

from jaxpref.report.curves import curves

_TIED = {"step": 0, "eval/rewards/accuracies": 0.0, "eval/rewards/ties": 1.0}
_LATER = {"step": 8, "eval/rewards/accuracies": 0.9, "eval/rewards/ties": 0.0}


def test_only_what_was_logged():
  lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "grad_norm": 1.0}]
  titles = [chart.title for chart in curves(lines, "sft")]
  assert titles == ["Loss", "Gradient norm"]
  assert curves([], "dpo") == []


def test_ties_at_the_start_are_not_drawn_as_failure():
  (chart,) = curves([_TIED, _LATER], "dpo")
  assert [line.points for line in chart.drawn] == [[(8.0, 0.9)]]
  (chart,) = curves([{**_TIED, "eval/rewards/ties": 0.5}, _LATER], "dpo")
  assert len(chart.drawn[0].points) == 2


def test_speed_counts_tokens_where_there_are_no_pairs():
  line = {"step": 1, "pairs_per_second": 0.0, "tokens_per_second": 7.0}
  (chart,) = curves([line], "sft")
  assert chart.drawn[0].points == [(1.0, 7.0)]
