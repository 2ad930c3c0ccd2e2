"""Which curves a report shows."""

from collections.abc import Iterator, Sequence
import math

from jaxpref.report.charts import Chart, Line
from jaxpref.report.read import Row, series, starts_tied


def curves(lines: Sequence[Row], loss: str) -> list[Chart]:
  """The charts of a run that have something to show.

  Args:
    lines: those of metrics.jsonl.
    loss: config.loss.name.
  """
  return [chart for chart in _all_charts(lines, loss) if chart.drawn]


def _all_charts(lines: Sequence[Row], loss: str) -> Iterator[Chart]:
  def line(key: str, name: str, color: str = "blue") -> Line:
    points = series(lines, key)
    if key == "eval/rewards/accuracies" and starts_tied(lines):
      points = [(step, value) for step, value in points if step > 0]
    smooth = key != "learning_rate"
    return Line(name, points, color, key.startswith("eval/"), smooth)

  agree = ("ln 2: policy = reference", math.log(2))
  yield Chart(
    "Loss",
    [line("loss", "train"), line("eval/loss", "held-out", "green")],
    level=agree if loss == "dpo" else None,
  )
  yield Chart(
    "Accuracy",
    [
      line("rewards/accuracies", "reward, train"),
      line("eval/rewards/accuracies", "reward, held-out"),
      line("logps/accuracies", "likelier, train", "orange"),
      line("eval/logps/accuracies", "likelier, held-out", "orange"),
    ],
    help="comparisons where the preferred answer has the larger implicit "
    "reward, and where it is the likelier one",
    percent=True,
  )
  yield Chart(
    "Reward margin",
    [
      line("rewards/margins", "train"),
      line("eval/rewards/margins", "held-out", "green"),
    ],
    help="reward of the chosen answer minus that of the rejected one",
    zero=True,
  )
  yield Chart(
    "Rewards",
    [
      line("rewards/chosen", "chosen"),
      line("rewards/rejected", "rejected", "orange"),
    ],
    help="β times the change in log-probability since the reference",
    zero=True,
  )
  yield Chart(
    "Log-probability of answers",
    [
      line("logps/chosen", "chosen"),
      line("eval/logps/chosen", "held-out"),
      line("logps/rejected", "rejected", "orange"),
      line("eval/logps/rejected", "held-out", "orange"),
    ],
    help="nats, summed over the answer",
  )
  yield Chart(
    "Gradient norm", [line("grad_norm", "before clipping")], zero=True
  )
  yield Chart(
    "Learning rate", [line("learning_rate", "schedule", "violet")], zero=True
  )
  pairs = line("pairs_per_second", "pairs a second", "green")
  tokens = line("tokens_per_second", "tokens a second", "green")
  compares = any(value > 0 for _, value in pairs.points)
  yield Chart("Speed", [pairs if compares else tokens], zero=True)
