"""How red an image is, and how often ratings rise."""

import numpy as np
import pytest

from jaxpref.config_checks import CHOICES
from jaxpref.score.raters import RATERS, preference_rate, redness


@pytest.mark.parametrize(
  ("color", "rate"),
  [
    ((255, 0, 0), 1.0),
    ((0, 255, 255), 0.0),
    ((255, 255, 255), 0.5),
    ((0, 0, 0), 0.5),
    ((0, 255, 0), 0.25),
    ((0, 0, 255), 0.25),
    ((255, 0, 255), 0.75),
  ],
)
def test_redness(color, rate):
  assert redness(np.full((4, 6, 3), color, np.uint8)) == pytest.approx(rate)


def test_redness_is_a_mean_over_pixels():
  pixels = np.full((2, 2, 3), 255, np.uint8)
  pixels[0, 0] = (255, 0, 0)
  assert redness(pixels) == pytest.approx(0.5 + 0.5 / 4)


def test_a_tie_counts_half():
  assert preference_rate([1.0, 2.0], [1.0, 2.0]) == 0.5
  assert preference_rate([2.0, 1.0, 3.0], [1.0, 2.0, 2.0]) == 2 / 3


def test_the_config_names_them():
  assert set(CHOICES["score.rater"]) == {"", *RATERS}
