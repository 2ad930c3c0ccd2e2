"""Line charts over training steps, drawn as inline SVG.

Colours are classes of the page's style sheet, so that a chart follows its
light or dark theme; text is text, so that it can be selected and searched.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import math
from typing import NamedTuple

import markupsafe
import numpy as np

Point = tuple[float, float]  # step, value

_WIDTH, _HEIGHT = 480.0, 250.0  # of the viewBox, in its own pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 12.0, 26.0
_MOST_POINTS = 300  # of a line; more cannot be told apart at this width
_SMOOTH_FROM = 40  # points; from here on a line is noise without a mean


@dataclasses.dataclass(frozen=True)
class Line:
  """A measure over steps; points that are not finite are left out."""

  name: str
  points: Sequence[Point]
  color: str  # a class of the style sheet: 'blue', 'orange', 'green', 'violet'
  marks: bool = False  # dots and dashes, for values measured now and then
  smooth: bool = True  # a moving mean over it, where it has many points


@dataclasses.dataclass(frozen=True)
class Chart:
  """Lines that share an axis.

  Attributes:
    percent: values are shares; the axis runs from 0 to 100 %.
    level: a labelled horizontal line, such as ("ln 2", 0.693).
    zero: the axis begins at 0.
  """

  title: str
  lines: Sequence[Line]
  help: str = ""
  percent: bool = False
  zero: bool = False
  level: tuple[str, float] | None = None

  @property
  def drawn(self) -> list[Line]:
    """The lines that have at least one finite point."""
    kept = [
      dataclasses.replace(line, points=_thin(_finite(line.points)))
      for line in self.lines
    ]
    return [line for line in kept if line.points]

  @property
  def legend(self) -> list[tuple[Line, str]]:
    """Each line with its last value, as text."""
    return [
      (line, self.text(_finite(line.points)[-1][1]))
      for line in self.lines
      if _finite(line.points)
    ]

  @property
  def svg(self) -> markupsafe.Markup:
    return markupsafe.Markup("").join(_draw(self))

  @property
  def hover(self) -> str:
    """JSON for the page's script: what to show above which place."""
    axes = _axes(self)
    return json.dumps(
      [
        {
          "name": line.name,
          "color": line.color,
          "points": [
            [
              round(axes.x(s), 1),
              round(axes.y(v), 1),
              f"{s:,.0f}",
              self.text(v),
            ]
            for s, v in line.points
          ],
        }
        for line in self.drawn
      ]
    )

  def text(self, value: float) -> str:
    return percent(value) if self.percent else number(value)


def number(value: float, digits: int = 4) -> str:
  """A number as people read it: 0.6931, −1.5, 2,310, 5e−7, NaN."""
  if not math.isfinite(value):
    return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
  if value == 0:
    return "0"
  size = abs(value)
  if size >= 1e6 or size < 1e-3:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
      mantissa = mantissa.rstrip("0").rstrip(".")
    text = f"{mantissa}e{int(exponent)}"
  else:
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals}f}"
    if "." in text:
      text = text.rstrip("0").rstrip(".")
  return text.replace("-", "−")


def percent(value: float) -> str:
  return (
    f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    if math.isfinite(value)
    else number(value)
  )


class _Axes(NamedTuple):
  x_ticks: list[float]
  y_ticks: list[float]
  x_range: tuple[float, float]
  y_range: tuple[float, float]

  def x(self, step: float) -> float:
    low, high = self.x_range
    return _LEFT + (step - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

  def y(self, value: float) -> float:
    low, high = self.y_range
    share = (value - low) / (high - low)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axes(chart: Chart) -> _Axes:
  points = [point for line in chart.drawn for point in line.points]
  steps = [step for step, _ in points]
  first, last = min(steps), max(steps)
  if first == last:
    first, last = first - 0.5, last + 0.5
  x_ticks = [tick for tick in _ticks(first, last, 6) if tick == int(tick)]
  if chart.percent:
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    return _Axes(x_ticks, ticks, (first, last), (0.0, 1.0))
  values = [value for _, value in points]
  if chart.level:
    values.append(chart.level[1])
  if chart.zero:
    values.append(0.0)
  low, high = min(values), max(values)
  if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):  # a level line
    low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
  room = 0.06 * (high - low)
  low = low if chart.zero and low == 0 else low - room
  high += room
  return _Axes(x_ticks, _ticks(low, high, 5), (first, last), (low, high))


def _ticks(low: float, high: float, count: int) -> list[float]:
  """Round numbers within a range, about `count` of them."""
  rough = (high - low) / count
  unit = 10.0 ** math.floor(math.log10(rough))
  step = unit * next(m for m in (1, 2, 2.5, 5, 10) if m * unit >= 0.999 * rough)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def _draw(chart: Chart) -> Iterator[markupsafe.Markup]:
  mark, axes = markupsafe.Markup, _axes(chart)
  right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
  names = ", ".join(line.name for line in chart.drawn)
  yield mark('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">').format(
    _WIDTH, _HEIGHT, f"{chart.title} over steps: {names}"
  )
  for tick in axes.y_ticks:
    y = axes.y(tick)
    label = (
      f"{100 * tick:g}\N{NO-BREAK SPACE}%" if chart.percent else number(tick)
    )
    yield mark(
      '<line class="grid" x1="{:g}" x2="{:g}" y1="{:.1f}" y2="{:.1f}"/>'
      '<text x="{:g}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(_LEFT, right, y, y, _LEFT - 8, y + 4, label)
  for tick in axes.x_ticks:
    x = axes.x(tick)
    anchor = "end" if x > right - 8 else "middle"
    yield mark('<text x="{:.1f}" y="{:g}" text-anchor="{}">{}</text>').format(
      x, base + 18, anchor, f"{tick:,.0f}"
    )
  if chart.level:
    name, value = chart.level
    y = axes.y(value)
    yield mark(
      '<line class="level" x1="{:g}" x2="{:g}" y1="{:.1f}" y2="{:.1f}"/>'
      '<text class="level" x="{:g}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(_LEFT, right, y, y, right, y - 5, name)
  for line in chart.drawn:
    yield from _draw_line(line, axes)
  yield mark(
    '<line class="cursor" x1="0" x2="0" y1="{:g}" y2="{:g}"/></svg>'
  ).format(_TOP, base)


def _draw_line(line: Line, axes: _Axes) -> Iterator[markupsafe.Markup]:
  mark = markupsafe.Markup
  path = mark('<polyline class="{} {}" points="{}"/>')
  if line.marks or not line.smooth or len(line.points) < _SMOOTH_FROM:
    style = "dashed" if line.marks else "line"
    yield path.format(style, line.color, _coordinates(line.points, axes))
  else:
    yield path.format("faint", line.color, _coordinates(line.points, axes))
    smooth = _smooth(line.points)
    yield path.format("line", line.color, _coordinates(smooth, axes))
  if line.marks or len(line.points) == 1:
    for step, value in line.points:
      yield mark('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
        line.color, axes.x(step), axes.y(value)
      )


def _coordinates(points: Sequence[Point], axes: _Axes) -> str:
  return " ".join(f"{axes.x(s):.1f},{axes.y(v):.1f}" for s, v in points)


def _finite(points: Sequence[Point]) -> list[Point]:
  return [point for point in points if all(map(math.isfinite, point))]


def _thin(points: Sequence[Point]) -> list[Point]:
  """At most `_MOST_POINTS`: neighbours become their mean."""
  if len(points) <= _MOST_POINTS:
    return list(points)
  parts = np.array_split(np.asarray(points, float), _MOST_POINTS)
  return [
    (float(s), float(v)) for s, v in (part.mean(axis=0) for part in parts)
  ]


def _smooth(points: Sequence[Point]) -> list[Point]:
  """A centred moving mean; at the ends, of the points there are."""
  half = max(2, len(points) // 24)
  values = np.asarray([value for _, value in points])
  total = np.concatenate([[0.0], np.cumsum(values)])
  smooth = []
  for i, (step, _) in enumerate(points):
    low, high = max(0, i - half), min(len(points), i + half + 1)
    smooth.append((step, float(total[high] - total[low]) / (high - low)))
  return smooth
