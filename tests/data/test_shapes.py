"""Simulated images: the same from a seed, and as their captions say."""

import io

import numpy as np
from PIL import Image
import pyarrow.parquet
import pytest

from jaxpref.data.shapes import (
  CAPTIONS,
  SIDE,
  SIZES,
  draw_shape,
  draw_shapes,
  write_lists,
  write_pairs,
  write_shapes,
)
from jaxpref.score.raters import redness


def test_the_seed_decides():
  first, again, other = draw_shapes(4, 0), draw_shapes(6, 0), draw_shapes(4, 1)
  for one, same in zip(first, again):
    assert one.caption == same.caption
    np.testing.assert_array_equal(one.pixels, same.pixels)
  assert any((a.pixels != b.pixels).any() for a, b in zip(first, other))


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_fit(caption):
  """By the width, and by how much of the box around it a shape fills."""
  _, size, kind = caption.split()
  filled = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}[kind]
  least, most = SIZES[size]
  rng = np.random.default_rng(0)
  for _ in range(20):
    shape = draw_shape(rng, caption)
    assert shape.caption == caption
    assert shape.pixels.shape == (SIDE, SIDE, 3)
    # One colour on white: how much of it each pixel has.
    paper = 255.0 - shape.pixels.astype(np.float64).sum(-1) / 3
    paper /= paper.max()
    area, wide = paper.sum(), paper.max(0).sum()
    half = np.sqrt(area / filled) / 2
    assert least < half - 0.05 < most + 0.02  # edges are drawn 1/16 wider
    # Off by up to 0.114, where a small triangle's base is part paper; the
    # kinds are 0.215 apart and more.
    assert area / wide**2 == pytest.approx(filled, abs=0.12)


def test_colours_are_of_all_hues_and_strong():
  inside = [x.pixels.reshape(-1, 3).min(0) for x in draw_shapes(200, 0)]
  lightest = np.array(inside).min(1)
  assert lightest.max() < 90  # of the weakest channel: no grey, no white
  rates = [redness(x.pixels) for x in draw_shapes(200, 0)]
  assert min(rates) < 0.45
  assert max(rates) > 0.6
  assert abs(np.mean(rates) - 0.5) < 0.02  # no colour is preferred


def test_files(tmp_path):
  path = write_shapes(tmp_path / "a" / "images.parquet", num_images=3, seed=0)
  rows = pyarrow.parquet.read_table(path).to_pylist()
  for row, (caption, pixels) in zip(rows, draw_shapes(3, 0), strict=True):
    assert row["prompt"] == caption
    (response,) = row["responses"]
    np.testing.assert_array_equal(_read(response["content"]["image"]), pixels)
  path = tmp_path / "pairs.parquet"
  write_pairs(path, num_pairs=20, seed=0, rate=redness)
  rows = pyarrow.parquet.read_table(path).to_pylist()
  assert len(rows) == 20
  for row in rows:
    assert row["prompt"] in CAPTIONS
    for side in ("chosen", "rejected"):
      assert row[f"score_{side}"] == redness(_read(row[side]))
    assert row["score_chosen"] > row["score_rejected"]
  before = path.read_bytes()
  write_pairs(path, num_pairs=20, seed=0, rate=redness)
  assert path.read_bytes() == before


def test_lists(tmp_path):
  """Scores are shares of the others: an order that rates agree with."""
  path = tmp_path / "lists.parquet"
  write_lists(path, num_lists=5, size=4, seed=0, rate=redness)
  rows = pyarrow.parquet.read_table(path).to_pylist()
  assert len(rows) == 5
  for row in rows:
    assert row["prompt"] in CAPTIONS
    assert sorted(row["scores"]) == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    rates = [redness(_read(image)) for image in row["images"]]
    assert (np.argsort(rates) == np.argsort(row["scores"])).all()


def _read(image):
  with Image.open(io.BytesIO(image["bytes"])) as found:
    return np.asarray(found)
