"""Line charts over training steps, drawn by matplotlib as inline SVG."""

from collections.abc import Sequence
import io
import re
from typing import Any, NamedTuple

import markupsafe
import numpy as np

from jaxpref.report.numbers import number, percent

_COLORS = {  # by the variable of the page's style sheet that replaces it
  "blue": "#2a6fdb", "orange": "#d9650b", "green": "#16836a",
  "violet": "#8a4fcf", "soft": "#5c626c", "grid": "#ececea",
}  # fmt: skip
_STYLE = {
  "savefig.format": "svg",
  "savefig.transparent": True,
  "svg.fonttype": "none",  # text stays text
  "font.sans-serif": "DejaVu Sans",  # comes with matplotlib
  "font.size": 11,
  "lines.linewidth": 2,
  "lines.markersize": 5,
  "lines.dashed_pattern": (3, 2),
  "lines.solid_capstyle": "round",
}
_MOST_POINTS = 300  # of a line; more cannot be told apart at this width
_SMOOTH_FROM = 40  # points; from here on a line is noise without a mean


class Line(NamedTuple):
  """A measure over steps: one finite value at least, and none that is not."""

  name: str
  color: str  # of _COLORS
  points: Sequence[tuple[float, float]]  # step, value
  marks: bool = False  # dots and dashes, for values measured now and then
  smooth: bool = True  # a moving mean over it, where it has many points


class Chart(NamedTuple):
  """Lines that share an axis."""

  title: str  # another one for each chart of a page
  lines: Sequence[Line]
  help: str = ""
  percent: bool = False  # values are shares; the axis runs from 0 to 100 %
  zero: bool = False  # the axis shows 0
  level: tuple[str, float] | None = None  # a labelled line across

  @property
  def legend(self) -> list[tuple[Line, str]]:
    """Each line with its last value, as text."""
    text = percent if self.percent else number
    return [(line, text(line.points[-1][1])) for line in self.lines]

  @property
  def svg(self) -> markupsafe.Markup:
    # Imported here, as it takes most of a second; not pyplot, whose figures
    # are global and may want a screen.
    from matplotlib import style
    from matplotlib.figure import Figure

    # The title as salt: ids differ between charts and not between runs.
    with style.context(["default", _STYLE, {"svg.hashsalt": self.title}]):
      figure = Figure(figsize=(480 / 72, 250 / 72))  # 480 x 250 in SVG
      _draw(self, figure.add_axes((0.11, 0.1, 0.86, 0.85), frameon=False))
      file, left_out = io.StringIO(), ("Creator", "Date", "Format", "Type")
      figure.savefig(file, metadata=dict.fromkeys(left_out))
    text = file.getvalue()
    text = text[text.index("<svg") :]  # without the prolog of a file
    text = re.sub('<g id="[^"]*"', "<g", text)  # alike in all charts
    for name, color in _COLORS.items():  # so that they follow light and dark
      text = text.replace(color, f"var(--{name})")
    return markupsafe.Markup(text)


def _draw(chart: Chart, axes: Any) -> None:
  soft, grid = _COLORS["soft"], _COLORS["grid"]
  axes.margins(x=0, y=0.06)
  axes.grid(axis="y", color=grid, linewidth=1)
  axes.tick_params(length=0, pad=8, labelcolor=soft)
  axes.locator_params(axis="x", nbins=6, integer=True, min_n_ticks=1)
  axes.locator_params(axis="y", nbins=5)
  axes.xaxis.set_major_formatter("{x:,.0f}")
  axes.yaxis.set_major_formatter(lambda value, _: number(value))
  if chart.percent:
    axes.yaxis.set_major_formatter(lambda share, _: percent(share, 0))
    axes.set_ylim(0, 1)
  if chart.zero:
    line = axes.axhline(0, color=grid, linewidth=1)
    line.sticky_edges.y.append(0)  # no room below it
  if chart.level:
    name, value = chart.level
    axes.axhline(value, color=soft, linewidth=1, linestyle="--")
    place = {"xycoords": axes.get_yaxis_transform(), "ha": "right"}
    above = {"xytext": (0, 4), "textcoords": "offset points"}
    axes.annotate(name, (1, value), color=soft, **place, **above)
  for line in chart.lines:
    _draw_line(line, axes)


def _draw_line(line: Line, axes: Any) -> None:
  # Where there are too many points, neighbours become their mean.
  count = min(len(line.points), _MOST_POINTS)
  parts = np.array_split(np.asarray(line.points), count)
  steps, values = np.stack([part.mean(axis=0) for part in parts], axis=1)
  look = {"color": _COLORS[line.color], "clip_on": False}
  if line.marks:
    axes.plot(steps, values, "o--", linewidth=1.5, **look)
    return
  if line.smooth and count >= _SMOOTH_FROM:
    axes.plot(steps, values, alpha=0.3, linewidth=1, **look)
    # A centred mean; at the ends, of the points there are.
    window = np.ones(1 + 2 * max(2, count // 24))
    total = np.convolve(values, window, "same")
    values = total / np.convolve(np.ones(count), window, "same")
  axes.plot(steps, values, "o" if count == 1 else "-", **look)
