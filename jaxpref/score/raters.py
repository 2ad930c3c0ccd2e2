"""Raters of images that need no model, and how two sets of images compare."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from jaxpref.types import Leaf

Rater = Callable[[UInt8[Leaf, "*images Y X 3"]], Any]
"""Of arrays of NumPy, and of JAX within a training step."""


def redness(
  pixels: UInt8[Leaf, "*images Y X 3"],
) -> Float[Leaf, "*images"]:
  """How far red exceeds the mean of green and blue, over all pixels.

  Returns: 1 where all is pure red, 0.5 for greys, 0 for cyan; in float64 of
  NumPy's arrays, in float32 of JAX's.

  >>> float(redness(np.full((8, 8, 3), (255, 0, 0), np.uint8)))
  1.0
  """
  kind = np.float64 if isinstance(pixels, np.ndarray) else np.float32
  mean = pixels.mean(axis=(-3, -2), dtype=kind) / 255.0
  red, green, blue = (mean[..., channel] for channel in range(3))
  return 0.5 + 0.5 * (red - 0.5 * (green + blue))


def preference_rate(after: Sequence[float], before: Sequence[float]) -> float:
  """The share of ratings that rose; one that did not change counts half.

  >>> preference_rate([0.9, 0.5, 0.1, 0.8], [0.1, 0.5, 0.2, 0.3])
  0.625
  """
  change = np.subtract(after, before)
  return float(np.mean(0.5 + 0.5 * np.sign(change)))


RATERS: Mapping[str, Rater] = {"red": redness}
"""By the names of `config.score.rater`."""
