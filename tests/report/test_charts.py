"""Line charts: numbers, axes, and where the points land."""

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxpref.report.charts import Chart, Line, number, percent


def _chart(points, **keywords):
  points = [(float(step), value) for step, value in points]
  return Chart("Loss", [Line("train", points, "blue")], **keywords)


def _polylines(chart):
  root = ElementTree.fromstring(chart.svg)
  return {
    each.get("class"): np.array(
      [
        [float(x) for x in point.split(",")]
        for point in each.get("points").split()
      ]
    )
    for each in root.iter("polyline")
  }


def _labels(chart):
  texts = ElementTree.fromstring(chart.svg).iter("text")
  return [text.text.replace("\xa0", " ") for text in texts]


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.0, "0"), (0.69314718, "0.6931"), (-1.5, "−1.5"), (2310.0, "2,310"),
    (5e-7, "5e−7"), (1.25e-5, "1.25e−5"), (1e9, "1e9"), (0.001, "0.001"),
    (123456.0, "123,456"), (math.nan, "NaN"), (-math.inf, "−∞"),
    (99.996, "100"),
  ],
)  # fmt: skip
def test_number(value, text):
  assert number(value) == text


def test_percent():
  assert percent(0.95349).replace("\xa0", " ") == "95.3 %"


def test_points_are_placed_to_scale():
  points = [(0, 1.0), (5, 3.0), (10, 2.0)]
  xy = _polylines(_chart(points))["line blue"]
  x, y = xy.T
  # 0.05: what one decimal of a coordinate leaves.
  np.testing.assert_allclose(x[1], (x[0] + x[2]) / 2, atol=0.051)
  np.testing.assert_allclose(y[2], (y[0] + y[1]) / 2, atol=0.051)
  assert y[1] < y[2] < y[0]  # up is more
  assert 54 <= x.min() < x.max() <= 466
  assert 12 <= y.min() < y.max() <= 224


@pytest.mark.parametrize(
  "points",
  [
    [(7, 0.25)],
    [(0, 2.0), (9, 2.0)],
    [(0, 0.0), (9, 0.0)],
    [(0, -1e-12), (1, 1e-12)],
    [(0, 1e30), (10**7, -1e30)],
    [(1, 5e-5), (2, 0.0)],
  ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_any_range(points, zero):
  chart = _chart(points, zero=zero)
  for xy in _polylines(chart).values():
    assert np.isfinite(xy).all()
    assert (xy >= [53.9, 11.9]).all()
    assert (xy <= [466.1, 224.1]).all()
  assert len(_labels(chart)) >= 2


def test_what_is_not_finite_is_left_out():
  points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
  assert len(_polylines(_chart(points))["line blue"]) == 2
  assert _chart([(0, math.nan)]).drawn == []
  assert _chart([]).legend == []


def test_many_points_are_thinned_and_smoothed():
  rng = np.random.default_rng(0)
  points = [(i, float(rng.normal())) for i in range(10_000)]
  lines = _polylines(_chart(points))
  assert set(lines) == {"faint blue", "line blue"}
  raw, smooth = lines["faint blue"][:, 1], lines["line blue"][:, 1]
  assert len(raw) == len(smooth) == 300
  assert smooth.std() < 0.5 * raw.std()
  np.testing.assert_allclose(smooth.mean(), raw.mean(), atol=1.0)
  constant = _polylines(_chart([(i, 3.0) for i in range(100)]))["line blue"]
  assert np.ptp(constant[:, 1]) == 0


def test_axis_of_shares():
  labels = _labels(_chart([(0, 0.5), (4, 0.9)], percent=True))
  assert labels[:5] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
  assert labels[5:] == ["0", "1", "2", "3", "4"]


def test_level_is_inside():
  chart = _chart([(0, 0.1), (1, 0.2)], level=("ln 2", math.log(2)))
  assert "ln 2" in _labels(chart)
  lines = ElementTree.fromstring(chart.svg).iter("line")
  (level,) = [line for line in lines if line.get("class") == "level"]
  assert 12 <= float(level.get("y1")) <= 60  # above both points


def test_hover_holds_what_is_drawn():
  chart = _chart([(1, 0.25), (2000, 0.5)], percent=True)
  (line,) = json.loads(chart.hover)
  drawn = _polylines(chart)["line blue"]
  assert [point[:2] for point in line["points"]] == drawn.tolist()
  texts = [re.sub(r"\s", " ", point[3]) for point in line["points"]]
  assert texts == ["25.0 %", "50.0 %"]
  assert line["points"][1][2] == "2,000"
