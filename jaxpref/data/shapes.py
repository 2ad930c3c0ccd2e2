"""Simulated images: one coloured shape each, and a caption that names it.

All of it is made up by this file, so that a diffusion model can be trained
from nothing, and what it should come to prefer is known. A caption says which
shape it is and whether it is small or large; colour and place are free.
"""

from collections.abc import Callable, Iterator, Mapping
import colorsys
import io
import pathlib
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw
import pyarrow
import pyarrow.parquet

from jaxpref.files import replacing

SIDE = 32  # pixels
KINDS = ("circle", "square", "triangle")
SIZES: Mapping[str, tuple[float, float]] = {
  "small": (5.0, 7.0),
  "large": (9.0, 12.0),
}
"""Half the width of a shape, in pixels: at least and at most."""

CAPTIONS = tuple(f"a {size} {kind}" for size in SIZES for kind in KINDS)
WORDS = ("a", *SIZES, *KINDS)

_FINE = 8  # pixels are means of 8 × 8 finer ones: smooth edges


class Shape(NamedTuple):
  """An image and what it shows."""

  caption: str  # one of CAPTIONS
  pixels: UInt8[np.ndarray, "32 32 3"]


def draw_shape(rng: np.random.Generator, caption: str | None = None) -> Shape:
  """Draws a shape of a random colour at a random place, on white.

  Args:
    rng: decides what the caption leaves open.
    caption: one of CAPTIONS; None for any of them.
  """
  if caption is None:
    caption = CAPTIONS[rng.integers(len(CAPTIONS))]
  _, size, kind = caption.split()
  half, hue, bright, full, x, y = rng.random(6)
  least, most = SIZES[size]
  half = least + half * (most - least)
  red_green_blue = colorsys.hsv_to_rgb(
    hue, 0.7 + 0.3 * full, 0.7 + 0.3 * bright
  )
  color = tuple(round(255 * each) for each in red_green_blue)
  x, y = (half + at * (SIDE - 2 * half) for at in (x, y))
  canvas = Image.new("RGB", (_FINE * SIDE, _FINE * SIDE), "white")
  draw = ImageDraw.Draw(canvas)
  box = [_FINE * each for each in (x - half, y - half, x + half, y + half)]
  if kind == "circle":
    draw.ellipse(box, fill=color)
  elif kind == "square":
    draw.rectangle(box, fill=color)
  else:
    left, top, right, bottom = box
    draw.polygon([(left, bottom), (right, bottom), (_FINE * x, top)], color)
  return Shape(caption, np.array(canvas.reduce(_FINE)))


def draw_shapes(count: int, seed: int) -> list[Shape]:
  """The same ones for the same seed; the first of more are those of fewer."""
  rng = np.random.default_rng(seed)
  return [draw_shape(rng) for _ in range(count)]


def write_shapes(
  path: pathlib.Path, *, num_images: int, seed: int
) -> pathlib.Path:
  """Writes images with captions, to train a model on; one a row.

  Args:
    path: a Parquet file of the format `record`, made anew.
    num_images: how many.
    seed: of `draw_shapes`.
  """
  rows = (
    {
      "prompt": caption,
      "responses": [{"content": {"image": {"bytes": _png(pixels)}}}],
    }
    for caption, pixels in draw_shapes(num_images, seed)
  )
  return _write(path, rows)


def write_pairs(
  path: pathlib.Path,
  *,
  num_pairs: int,
  seed: int,
  rate: Callable[[UInt8[np.ndarray, "Y X 3"]], float],
) -> pathlib.Path:
  """Writes two images of the same caption a row, the one rated higher chosen.

  The ratings stand beside them.

  Args:
    path: a Parquet file of the format `image_pair`, made anew.
    num_pairs: how many; images that are rated alike are drawn again.
    seed: of all that is drawn.
    rate: what is preferred.
  """
  rng = np.random.default_rng(seed)

  def rows() -> Iterator[dict[str, Any]]:
    made = 0
    while made < num_pairs:
      caption, one = draw_shape(rng)
      both = sorted((one, draw_shape(rng, caption).pixels), key=rate)
      low, high = map(rate, both)
      if low == high:
        continue
      yield {
        "prompt": caption,
        "chosen": {"bytes": _png(both[1])},
        "rejected": {"bytes": _png(both[0])},
        "score_chosen": high,
        "score_rejected": low,
      }
      made += 1

  return _write(path, rows())


def write_lists(
  path: pathlib.Path,
  *,
  num_lists: int,
  size: int,
  seed: int,
  rate: Callable[[UInt8[np.ndarray, "Y X 3"]], float],
) -> pathlib.Path:
  """Writes several images of the same caption a row, and how they rank.

  An image's score is the share of the others that are rated below it, from 0
  of the worst to 1 of the best: the votes of RankDPO with one voter.

  Args:
    path: a Parquet file of the format `image_ranked`, made anew.
    num_lists: how many rows.
    size: how many images each holds.
    seed: of all that is drawn.
    rate: what is preferred.
  """
  rng = np.random.default_rng(seed)

  def row() -> dict[str, Any]:
    caption, first = draw_shape(rng)
    images = [first]
    images += [draw_shape(rng, caption).pixels for _ in range(size - 1)]
    rates = np.array([rate(pixels) for pixels in images])
    below = (rates[:, None] > rates).sum(axis=1)
    return {
      "prompt": caption,
      "images": [{"bytes": _png(pixels)} for pixels in images],
      "scores": (below / (size - 1)).tolist(),
    }

  return _write(path, (row() for _ in range(num_lists)))


def _png(pixels: UInt8[np.ndarray, "Y X 3"]) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format="PNG")
  return file.getvalue()


def _write(path: pathlib.Path, rows: Iterator[dict[str, Any]]) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as partial:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), partial)
  return path
