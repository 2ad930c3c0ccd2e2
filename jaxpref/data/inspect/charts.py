"""Histograms of the findings, drawn by matplotlib as inline SVG."""

from collections.abc import Iterator, Sequence
import io
import re
from typing import Any, NamedTuple

import markupsafe
import numpy as np

from jaxpref.data.inspect.measure import Findings

_COLORS = {  # by the variable of the page's style sheet that replaces it
  "blue": "#2a6fdb", "orange": "#d9650b", "green": "#16836a",
  "soft": "#5c626c", "grid": "#ececea",
}  # fmt: skip
_STYLE = {
  "savefig.format": "svg",
  "savefig.transparent": True,
  "svg.fonttype": "none",  # text stays text
  "font.sans-serif": "DejaVu Sans",
  "font.size": 11,
}
_BINS = 40


class Histogram(NamedTuple):
  """Counts of values, of one kind or several."""

  title: str  # another one for each chart of a page
  help: str
  across: str  # what the horizontal axis says
  parts: Sequence[tuple[str, str, Sequence[float]]]  # name, color, values
  center: float | None = None  # a line across, and bins alike on both sides

  @property
  def svg(self) -> markupsafe.Markup:
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE, {"svg.hashsalt": self.title}]):
      figure = Figure(figsize=(480 / 72, 250 / 72))
      _draw(self, figure.add_axes((0.11, 0.17, 0.86, 0.78), frameon=False))
      file, left_out = io.StringIO(), ("Creator", "Date", "Format", "Type")
      figure.savefig(file, metadata=dict.fromkeys(left_out))
    text = file.getvalue()
    text = re.sub('<g id="[^"]*"', "<g", text[text.index("<svg") :])
    for name, color in _COLORS.items():  # so that they follow light and dark
      text = text.replace(color, f"var(--{name})")
    return markupsafe.Markup(text)


def histograms(found: Findings) -> Iterator[Histogram]:
  """The charts that the data have values for."""
  yield Histogram(
    "Lengths",
    "the last bar holds all that is longer",
    "tokens",
    [
      ("prompts", "blue", found.prompt_lengths),
      ("answers", "orange", found.response_lengths),
    ],
  )
  if found.pairs:
    better, worse = np.array(found.pairs).T
    yield Histogram(
      "Better and worse answers",
      "where the two shapes differ, length alone tells them apart",
      "tokens",
      [("better", "green", better), ("worse", "orange", worse)],
    )
    yield Histogram(
      "How much longer the better answer is",
      "right of the line the longer answer wins",
      "tokens more than the worse one",
      [("comparisons", "green", better - worse)],
      center=0.0,
    )
  yield from scores(found)
  if found.votes:
    votes = [vote for each in found.votes for vote in each]
    yield Histogram(
      "Judgements",
      "below 0 the first answer is better, above it the second",
      "strength",
      [("annotators", "blue", votes)],
      center=0.0,
    )


def scores(found: Findings) -> Iterator[Histogram]:
  """One for each axis that the data score by."""
  for name, values in found.scores.items():
    parts = [("answers", "blue", values)]
    help = f"{len(values):,} answers have it"
    yield Histogram(f"Score: {name}", help, name, parts)


def _draw(chart: Histogram, axes: Any) -> None:
  every = np.concatenate([np.asarray(x, float) for _, _, x in chart.parts])
  low, high = np.quantile(
    every, [0.01 if chart.center is not None else 0, 0.99]
  )
  if chart.center is not None:
    high = max(abs(low - chart.center), abs(high - chart.center), 1.0)
    low, high = chart.center - high, chart.center + high
  values = np.unique(every)
  if len(values) <= 12:  # ratings: a bar each
    gap = np.diff(values).min() if len(values) > 1 else 1.0
    edges = np.append(values - gap / 2, values[-1] + gap / 2)
  else:
    edges = np.linspace(low, max(high, low + 1), _BINS + 1)
  for name, color, part in chart.parts:
    shown = np.clip(np.asarray(part, float), edges[0], edges[-1])
    look = {"color": _COLORS[color], "label": name}
    axes.hist(shown, edges, alpha=0.55, **look)
  soft, grid = _COLORS["soft"], _COLORS["grid"]
  axes.grid(axis="y", color=grid, linewidth=1)
  axes.set_axisbelow(True)
  axes.tick_params(length=0, pad=6, labelcolor=soft)
  axes.set_xlabel(chart.across, color=soft)
  axes.locator_params(axis="y", nbins=5, integer=True)
  axes.yaxis.set_major_formatter("{x:,.0f}")
  axes.xaxis.set_major_formatter("{x:,g}")
  if chart.center is not None:
    axes.axvline(chart.center, color=soft, linewidth=1, linestyle="--")
