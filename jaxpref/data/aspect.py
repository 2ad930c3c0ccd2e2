"""The shapes that images are cut to: a square, or several by their aspect.

All images of a prompt are cut to one shape, so that they are compared alike.
"""

from collections.abc import Sequence
import math

from jaxtyping import Float32, Int, Shaped, UInt8
import numpy as np
from PIL import Image as Pillow

from jaxpref.errors import UserError

Size = tuple[int, int]  # rows and columns, in pixels

_PARTS = 16  # of the square's side: what the sides of all shapes are made of
_FEWEST = 8  # of them: of fewer, shapes are far from what they are said to be
_WIDEST = 2.0  # aspects are between 1:2 and 2:1
_MOST = _PARTS  # shapes that could differ, and more


def aspect_shapes(side: int, count: int, factor: int) -> tuple[Size, ...]:
  """Shapes of about side² pixels, the tallest first.

      rows = u round(side √a / u),    columns = u round(side / (u √a))

  for `count` aspects a from 2 to 1/2, at equal distances in log a. So an odd
  count has the square among them, an even one has not, and 1 is the square
  alone. u is the least common multiple of side / 16 and `factor`, and at most
  an eighth of the side: 64 at 1024 pixels, where most shapes are ones that SDXL
  was trained on.

  Args:
    side: of the square, in pixels.
    count: how many, `config.data.aspect_buckets`.
    factor: pixels to a latent; `side` is a multiple of it.

  Raises UserError where two of them would be the same, or no such u is.

  >>> aspect_shapes(1024, 5, 8)
  ((1472, 704), (1216, 832), (1024, 1024), (832, 1216), (704, 1472))

  Reference: Podell et al. 2023, appendix I (https://arxiv.org/abs/2307.01952).
  """
  if count == 1:
    return ((side, side),)
  unit = math.lcm(max(1, side // _PARTS), factor)
  if side % _PARTS or unit * _FEWEST > side:
    whole = _PARTS * factor
    raise UserError(
      f"config.data.resolution is {side}, and the sides of several "
      "config.data.aspect_buckets are sixteenths of it, or eighths, in whole "
      f"latents of {factor} pixels. Set it to a multiple of {whole}, such as "
      f"{-(-side // whole) * whole}; or config.data.aspect_buckets to 1, the "
      "square alone."
    )
  possible = {
    n: found
    for n in range(1, _MOST + 1)
    if len({*(found := _shapes(side, n, unit))}) == n
  }
  if count not in possible:
    fewer = max(n for n in possible if n < count)
    raise UserError(
      f"config.data.aspect_buckets is {count}, and at config.data.resolution "
      f"{side}, with sides that are multiples of {unit}, two of the shapes "
      f"would be the same. Set it to {fewer}, or a larger resolution."
    )
  return possible[count]


def nearest_shapes(
  sizes: Shaped[np.ndarray, "images 2"],
  first: Int[np.ndarray, " bounds"],
  shapes: Sequence[Size],
) -> Int[np.ndarray, " groups"]:
  """The number of each group's shape: the nearest to its images' mean.

  All in log aspect: 2:1 is as far from the square as 1:2 is. Of two that are
  as near it is the first, the taller.

  Args:
    sizes: rows and columns of each image.
    first: where each group's images begin, and where the last one's end.
    shapes: at least one.
  """
  means = np.add.reduceat(_log_aspect(sizes), first[:-1]) / np.diff(first)
  apart = np.abs(means[:, None] - _log_aspect(np.array(shapes)))
  # The last bits must not decide between two that are as near.
  return np.argmin(np.round(apart, 6), axis=1)


def fit(
  pixels: UInt8[np.ndarray, "rows columns 3"],
  shape: Size,
  *,
  mirrored: bool = False,
) -> tuple[UInt8[np.ndarray, "Y X 3"], Float32[np.ndarray, "6"]]:
  """Scales an image until it covers the shape, and cuts the middle out.

  What is mirrored is mirrored then: the same cut, left and right exchanged.

  Returns: the pixels, and SDXL's conditions: height and width as they were,
  the cut's top and left after scaling, height and width as they are.

  Reference: Podell et al. 2023, section 2.2 (https://arxiv.org/abs/2307.01952).
  """
  (height, width), (rows, columns) = pixels.shape[:2], shape
  scale = max(rows / height, columns / width)
  size = max(columns, round(width * scale)), max(rows, round(height * scale))
  image = Pillow.fromarray(pixels)
  if image.size != size:
    image = image.resize(size, Pillow.Resampling.BILINEAR)
  left, top = (size[0] - columns) // 2, (size[1] - rows) // 2
  cut = np.asarray(image.crop((left, top, left + columns, top + rows)))
  if mirrored:
    cut, left = cut[:, ::-1], size[0] - columns - left
  told = np.array([height, width, top, left, rows, columns], np.float32)
  return cut, told


def _shapes(side: int, count: int, unit: int) -> tuple[Size, ...]:
  whole = lambda pixels: unit * math.floor(pixels / unit + 0.5)
  # Of the square root of the aspect, as a power of 2: half at most.
  powers = np.linspace(0.5, -0.5, count) if count > 1 else [0.0]
  roots = [_WIDEST ** float(power) for power in powers]
  return tuple((whole(side * root), whole(side / root)) for root in roots)


def _log_aspect(
  sizes: Shaped[np.ndarray, "n 2"],
) -> Shaped[np.ndarray, " n"]:
  return np.log(sizes[:, 0] / sizes[:, 1])
