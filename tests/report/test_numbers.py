"""Numbers as text."""

import math

import pytest

from jaxpref.report.numbers import number, percent


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.0, "0"), (-0.0, "0"), (0.69314718, "0.6931"), (-1.5, "−1.5"),
    (2310.0, "2,310"), (5e-7, "5e−7"), (1.25e-5, "1.25e−5"), (1e9, "1e9"),
    (-2e-12, "−2e−12"), (3e12, "3e12"), (0.001, "0.001"),
    (123456.0, "123,456"), (99.996, "100"), (math.nan, "NaN"),
    (-math.inf, "−∞"),
  ],
)  # fmt: skip
def test_number(value, text):
  assert number(value) == text


def test_fewer_digits():
  assert number(105.6789, 3) == "106"


def test_percent():
  assert percent(0.95349).replace("\xa0", " ") == "95.3 %"
  assert percent(0.25, 0).replace("\xa0", " ") == "25 %"
