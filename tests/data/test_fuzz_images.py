"""Damaged images and malformed rows of them: refused, the others kept."""

import importlib.util
import io
import json
import pathlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import PIL.Image
import pyarrow as pa
from pyarrow import parquet
import pytest

from jaxpref.data import build, pictured
from jaxpref.data.read import source_files


def _script(name):
  path = pathlib.Path(__file__).parent / f"schemas/{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  return script


pictures, malform = _script("make_image_schemas"), _script("malform")
AT_ONCE = 20  # malformed rows of a file
_NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)


def _noise(kind):
  PIL.Image.fromarray(_NOISE).save(file := io.BytesIO(), kind)
  return file.getvalue()


def _changed(data, place, value):
  changed = bytearray(data)
  changed[place % len(data)] = value
  return bytes(changed)


WHOLE = st.sampled_from(
  [_noise(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
)
# What says that it is an image: cut off, with a byte changed, or too large.
IMAGES = st.one_of(
  st.binary(max_size=40),
  st.builds(lambda data, end: data[:end], WHOLE, st.integers(0, 2000)),
  st.builds(_changed, WHOLE, st.integers(0, 5000), st.integers(0, 255)),
  st.builds(pictures.bomb, st.integers(0, 2**31), st.integers(0, 2**31)),
)
_LABEL = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 0.5, 1.0]))
PICKS = st.fixed_dictionaries(
  {
    "caption": st.one_of(st.none(), st.text(max_size=3), st.just("a cat")),
    "jpg_0": st.one_of(st.none(), IMAGES, st.just(pictures.RED)),
    "jpg_1": st.one_of(IMAGES, st.just(pictures.LIME)),
    "label_0": _LABEL,
    "label_1": _LABEL,
    "has_label": st.sampled_from([None, True, True, False]),
  }
)


def _check_pictured(file, count):
  """Of `count` rows those of even number are whole, and kept."""
  tally, told, kept = build.Tally(), [], set()
  for record, pixels in pictured.pictured(
    source_files(file), "auto", tally, told.append
  ):
    assert len(pixels) == len(record.responses)
    assert all(each.dtype == np.uint8 and each.size for each in pixels)
    assert all(0.5 <= each.preference <= 1.0 for each in record.comparisons)
    kept.add(int(record.id.rpartition(":")[2]))
  refused = {each.row for each in told}
  assert set(range(2, count + 1, 2)) <= kept
  assert not kept & refused
  assert all(each.file == file.name and each.reason for each in told)
  assert max(len(each.reason) for each in told) < 2000
  left_out = sum(tally.dropped.values())
  assert len(kept) + len(refused) + left_out == tally.rows == count
  return kept


def _between(rows, whole):
  return [each for row in rows for each in (row, whole)]


def _fuzz_images(folder, files):
  """Pick-a-Pic with bytes that are no image and labels that are none."""
  file, kept = folder / "a.parquet", 0
  whole = pictures.ROWS["pickapic"][0]
  types = pa.schema(pictures.SCHEMAS["pickapic"])

  @settings(
    max_examples=files,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
  )
  @given(st.lists(PICKS, min_size=AT_ONCE, max_size=AT_ONCE))
  def check(rows):
    nonlocal kept
    table = pa.Table.from_pylist(_between(rows, whole), types)
    parquet.write_table(table, file)
    kept += len(_check_pictured(file, 2 * AT_ONCE)) - AT_ONCE

  check()
  return kept


def test_two_hundred_rows_of_damaged_images(tmp_path):
  """A byte of a JPEG may change without harm, and few labels are sound."""
  assert 0 < _fuzz_images(tmp_path, 10) < 100


@pytest.mark.certify
def test_ten_thousand_rows_of_damaged_images(tmp_path):
  _fuzz_images(tmp_path, 10_000 // AT_ONCE)


_NAMED = ("pair_paths", "hpdv2_train", "hpdv2_test", "imagereward",
          "record_json")  # fmt: skip


@settings(
  max_examples=10,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_two_hundred_malformed_rows_of_images(tmp_path, data):
  """Any part of a row replaced, wrong types of labels and ranks among them."""
  pictures.write(tmp_path, "hpdv2_train")
  (whole,) = pictures.ROWS["imagereward"]
  rows = []
  for _ in range(AT_ONCE):
    name = data.draw(st.sampled_from(_NAMED))
    row = json.loads(json.dumps(pictures.ROWS[name][0]))
    if name == "pair_paths":
      row["rejected"] = "images/lime.png"
    for _ in range(data.draw(st.integers(1, 3))):
      malform.replace(data.draw, row)
    rows.append(row)
  lines = [json.dumps(row) + "\n" for row in _between(rows, whole)]
  (file := tmp_path / "a.jsonl").write_text("".join(lines))
  _check_pictured(file, 2 * AT_ONCE)
