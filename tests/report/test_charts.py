"""Line charts: axes, where the points land, and SVG that fits into a page."""

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxpref.report.charts import Chart, Line

_SVG = "{http://www.w3.org/2000/svg}"


def _chart(points, marks=False, **keywords):
  points = [(float(step), value) for step, value in points]
  return Chart("Loss", [Line("train", "blue", points, marks)], **keywords)


def _paths(chart, color="blue"):
  """The coordinates and style of each line drawn in a colour."""
  found = []
  for path in ElementTree.fromstring(chart.svg).iter(f"{_SVG}path"):
    style = path.get("style", "")
    if "fill: none" in style and f"stroke: var(--{color})" in style:
      pairs = re.findall(r"[ML] (\S+) (\S+)", path.get("d"))
      found.append((np.array(pairs, float), style))
  return found


def _dots(chart):
  uses = ElementTree.fromstring(chart.svg).iter(f"{_SVG}use")
  return [use for use in uses if "fill: var(--blue)" in use.get("style")]


def _labels(chart):
  texts = ElementTree.fromstring(chart.svg).iter(f"{_SVG}text")
  return [text.text.replace("\xa0", " ") for text in texts]


def test_points_are_placed_to_scale():
  ((xy, _),) = _paths(_chart([(0, 1.0), (5, 3.0), (10, 2.0)]))
  x, y = xy.T
  # 2e-6: what six decimals of a coordinate leave.
  np.testing.assert_allclose(x[1], (x[0] + x[2]) / 2, atol=2e-6)
  np.testing.assert_allclose(y[2], (y[0] + y[1]) / 2, atol=2e-6)
  assert y[1] < y[2] < y[0]  # up is more


@pytest.mark.parametrize(
  "points",
  [
    [(7, 0.25)],
    [(0, 2.0), (9, 2.0)],
    [(0, 0.0), (9, 0.0)],
    [(0, -1e-12), (1, 1e-12)],
    [(0, 3e38), (10**7, -3e38)],  # as far as float32 goes
    [(1, 5e-5), (2, 0.0)],
  ],
)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("marks", [False, True])
def test_any_range(points, zero, marks):
  chart = _chart(points, marks, zero=zero)
  for xy, _ in _paths(chart):
    assert np.isfinite(xy).all()
    assert (xy >= 0).all()
    assert (xy <= [480, 250]).all()
  assert len(_labels(chart)) >= 2
  shown = len(points) if marks or len(points) == 1 else 0
  assert len(_dots(chart)) == shown


def test_steps_are_whole():
  labels = _labels(_chart([(0, 0.5), (2, 0.9)]))
  assert labels[:3] == ["0", "1", "2"]
  assert _labels(_chart([(7, 0.5)]))[:2] == ["7", "0.48"]
  labels = _labels(_chart([(0, 0.5), (20000, 0.9)]))
  assert "20,000" in labels


def test_many_points_are_thinned_and_smoothed():
  rng = np.random.default_rng(0)
  points = [(i, float(rng.normal())) for i in range(10_000)]
  (raw, faint), (smooth, clear) = _paths(_chart(points))
  assert "opacity: 0.3" in faint
  assert "opacity" not in clear
  assert len(smooth) <= len(raw) <= 300
  assert smooth[:, 1].std() < 0.5 * raw[:, 1].std()
  np.testing.assert_allclose(smooth[:, 1].mean(), raw[:, 1].mean(), atol=2)
  assert len(_chart(points).svg) < 30_000


def test_moving_mean_keeps_a_level():
  for xy, _ in _paths(_chart([(i, 3.0) for i in range(100)])):
    assert np.ptp(xy[:, 1]) == 0


def test_no_moving_mean_where_none_is_wanted():
  points = [(float(i), float(i % 2)) for i in range(100)]
  chart = Chart("Learning rate", [Line("", "blue", points, smooth=False)])
  assert len(_paths(chart)) == 1


def test_axis_of_shares():
  chart = _chart([(0, 0.5), (4, 0.9)], percent=True)
  shares = [label for label in _labels(chart) if "%" in label]
  assert shares == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
  ((_, last),) = chart.legend
  assert last.replace("\xa0", " ") == "90.0 %"


def test_zero_is_the_floor_of_what_is_positive():
  assert "0" not in _labels(_chart([(1, 5.0), (2, 6.0)]))[2:]
  chart = _chart([(1, 5.0), (2, 6.0)], zero=True)
  ((floor, _), *_) = _paths(chart, "grid")[-1:]
  assert floor[0, 1] == pytest.approx(225)  # the lower edge of the axes


def test_level_is_inside():
  chart = _chart([(0, 0.1), (1, 0.2)], level=("ln 2", math.log(2)))
  assert "ln 2" in _labels(chart)
  ((level, style),) = _paths(chart, "soft")
  assert "dasharray" in style
  assert 12 <= level[0, 1] <= 60  # above both points


def test_charts_of_a_page_share_no_id():
  charts = [_chart([(0, 1.0), (1, 2.0)], marks=True)]
  charts.append(charts[0]._replace(title="Accuracy"))
  ids = [re.findall(r'\bid="([^"]+)"', chart.svg) for chart in charts]
  assert all(ids)
  assert not set(ids[0]) & set(ids[1])
  for chart, own in zip(charts, ids):
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', chart.svg)
    assert {a or b for a, b in used} <= set(own)


def test_colours_are_those_of_the_page():
  svg = _chart([(0, 1.0), (1, 2.0)], True, zero=True, level=("a", 1.0)).svg
  assert svg.startswith("<svg")
  assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_same_run_same_chart_whatever_the_settings_of_matplotlib():
  import matplotlib

  chart = _chart([(0, 1.0), (1, 2.0)])
  before = chart.svg
  with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
    assert chart.svg == before
    assert matplotlib.rcParams["lines.linewidth"] == 9


def test_matplotlib_waits_until_something_is_drawn():
  code = """if True:
    import sys
    from jaxpref.report.charts import Chart, Line
    assert "matplotlib" not in sys.modules
    Chart("Loss", [Line("train", "blue", [(0.0, 1.0)])]).svg
    assert "matplotlib.pyplot" not in sys.modules
  """
  subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
