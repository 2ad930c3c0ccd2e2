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


def sharpness(
  pixels: UInt8[np.ndarray, "*images Y X 3"],
) -> Float[np.ndarray, "*images"]:
  """How high the steps between neighbouring pixels are, by their own weight.

      Σ d² / Σ |d|,   d of neighbours in rows and columns, in 255ths

  An edge of contrast c has c, and c / w where it is blurred over w pixels; of
  what has no edges it is 0. Neither the number of edges nor their place counts.

  >>> stripes = np.tile(np.uint8([0, 0, 255, 255])[:, None, None], (1, 4, 3))
  >>> float(sharpness(stripes))
  1.0
  """
  values = pixels / 255.0
  steps = [np.diff(values, axis=axis) for axis in (-3, -2)]
  whole = (-3, -2, -1)
  square = sum(np.sum(each**2, axis=whole) for each in steps)
  size = sum(np.sum(np.abs(each), axis=whole) for each in steps)
  return np.asarray(square / np.maximum(size, 1e-12))


def frechet_distance(
  one: Float[np.ndarray, "ones D"], other: Float[np.ndarray, "others D"]
) -> float:
  """How far two sets of features are apart, as Gaussians.

      |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)

  Few samples of many features make it larger: compare sets of one size.

  Reference: Heusel et al. 2017, eq. 6 (https://arxiv.org/abs/1706.08500).

  >>> x = np.random.default_rng(0).normal(size=(100, 2))
  >>> f"{frechet_distance(x, x + 2.0):.4f}"
  '8.0000'
  """
  first, second = (np.cov(x, rowvar=False).reshape(2 * (x.shape[1],))
                   for x in (one, other))  # fmt: skip
  value, vector = np.linalg.eigh(first)
  root = (vector * np.sqrt(np.maximum(value, 0.0))) @ vector.T
  both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0.0))
  apart = np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2)
  return float(apart + np.trace(first + second) - 2.0 * np.sum(both))


RATERS: Mapping[str, Rater] = {"red": redness}
"""By the names of `config.score.rater`."""
