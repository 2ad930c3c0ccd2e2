"""What training changed, as a few lines for the screen."""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from jaxpref.fit.metrics import read_metrics
from jaxpref.report.read import axes_of

_ROWS = (
  ("held-out loss", "eval/loss", "{:.4f}"),
  ("held-out reward accuracy", "eval/rewards/accuracies", "{:.3f}"),
  ("held-out preferred answer likelier", "eval/logps/accuracies", "{:.3f}"),
  ("samples that match the pattern", "samples/pattern", "{:.3f}"),
  ("rating of images drawn of held-out", "eval/reward/mean", "{:.3f}"),
  ("redness of samples", "samples/red", "{:.3f}"),
  ("samples preferred to those before", "samples/preferred", "{:.3f}"),
  ("training loss", "loss", "{:.4f}"),
)


def before_and_after(workdir: pathlib.Path) -> str:
  """A table of the first and the last value of what was measured."""
  lines = read_metrics(workdir)
  table = [f"{'':36}{'before':>10}{'after':>10}"]
  rows = []
  for label, name, form in _ROWS:
    rows.append((label, name, form))
    for axis in axes_of(lines, name):
      rows.append((f"  on {axis}", f"{name}/{axis}", form))
  for label, name, form in rows:
    values = [each for each in lines if each.get(name) is not None]
    if not values:
      continue
    first, last = (_cell(values[i], name, form) for i in (0, -1))
    error = values[-1].get(f"{name}_stderr")
    note = f" ± {error:.3f}" if error and math.isfinite(error) else ""
    table.append(f"{label:36}{first:>10}{last:>10}{note}")
  return "\n".join(table)


def _cell(line: Mapping[str, Any], name: str, form: str) -> str:
  # Policy and reference are the same then, and a tie counts as wrong.
  if "rewards/accuracies" in name and line.get("eval/rewards/ties") == 1:
    return "all ties"
  return form.format(line[name])
