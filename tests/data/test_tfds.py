"""Folders of TFDS: what it wrote itself, and what is not as it says."""

import base64
import json
import pathlib

from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxpref.data import build, formats, tfds
from jaxpref.data.examples import parse_example
from jaxpref.data.read import read_rows, source_files
from jaxpref.errors import UserError
from jaxpref.types import Image

# Written by TFDS itself: tests/golden/make_tfds.py.
GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "golden/tfds.json").read_text()
)
RECORDS = [base64.b64decode(each) for each in GOLDEN["records"]]
RED, LIME = (base64.b64decode(GOLDEN[color]) for color in ("red", "lime"))
COLUMNS = GOLDEN["features"]["featuresDict"]["features"]


def _records_to(file, records):
  writer = ArrayRecordWriter(str(file), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def _folder(tmp_path, columns=COLUMNS, records=RECORDS):
  told = {"featuresDict": {"features": columns}}
  (tmp_path / "features.json").write_text(json.dumps(told))
  (tmp_path / "dataset_info.json").write_text("{}")
  _records_to(tmp_path / GOLDEN["file"], records)
  return tmp_path


def _rows(path):
  return list(read_rows(source_files(path)))


def _only(*names):
  return {name: COLUMNS[name] for name in names}


def test_what_tfds_wrote_is_read_without_it(tmp_path):
  """But for `grid`, which has two axes. Records were shuffled as written."""
  rows = _rows(_folder(tmp_path))
  assert [row.number for row in rows] == [1, 2, 3]
  assert {row.file for row in rows} == {GOLDEN["file"]}
  said = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": ""},
  ]
  for row in rows:
    number = -row.values["meta"]["seed"]
    assert row.values == {
      "prompt": f"a cat, ünïcode {number}",
      "chosen": RED,
      "rejected": LIME,
      "images": [RED, LIME][:number],
      "scores": [0.5, -1.5],
      "axes": [1, -2],
      "turns": said[:number],
      "meta": {"model": "xl", "seed": -number, "sure": 0.25},
      "label": number == 1,
      "class": 1,
      "raw": RED,
    }
    assert type(row.values["label"]) is bool


def test_the_rows_are_records_of_images(tmp_path):
  columns = _only("prompt", "chosen", "rejected")
  files = source_files(_folder(tmp_path, columns))
  tally, told = build.Tally(), []
  records = list(build.records(files, "auto", tally, told.append))
  assert not told
  assert tally.formats == {"image_pair": 3}
  contents = [[each.content for each in r.responses] for r in records]
  assert contents == [[Image(RED), Image(LIME)]] * 3
  assert "image_pair (3 rows: " in formats.explain(tally.formats)


def test_one_split_is_read(tmp_path):
  _folder(tmp_path)
  other = GOLDEN["file"].replace("train", "test")
  _records_to(tmp_path / other, RECORDS[:1])
  with pytest.raises(
    UserError,
    match=r"the splits pairs-test, pairs-train of .*-test\.array_record\*",
  ):
    source_files(tmp_path)
  assert len(_rows(tmp_path / "pairs-test.array_record*")) == 1
  shards = [f"pairs-all.array_record-0000{i}-of-00002" for i in (0, 1)]
  for shard in shards:
    _records_to(tmp_path / shard, RECORDS[:2])
  found = _rows(tmp_path / "pairs-all.array_record*")
  assert [(row.file, row.number) for row in found] == [
    (shard, i) for shard in shards for i in (1, 2)
  ]


def test_other_files_of_tfds_are_named(tmp_path):
  _folder(tmp_path)
  (tmp_path / GOLDEN["file"]).rename(
    tmp_path / "pairs-train.tfrecord-00000-of-00001"
  )
  with pytest.raises(
    UserError, match=r"not stored as ArrayRecord.*file_format"
  ):
    source_files(tmp_path)


def test_json_in_array_records_stays_json(tmp_path):
  """Without TFDS' two files beside it, or with one of them."""
  _records_to(tmp_path / "a.array_record-00000-of-00001", [b'{"text": "a"}'])
  (tmp_path / "features.json").write_text("{}")
  (row,) = _rows(tmp_path)
  assert row.values == {"text": "a"}


_TEXT = COLUMNS["prompt"]


@pytest.mark.parametrize(
  ("columns", "records", "kind", "reason"),
  [
    ({"absent": _TEXT}, RECORDS, "not as features.json says",
     "absent has 0 values, and must have one"),
    ({"scores": _TEXT}, RECORDS, "not as features.json says", "has 2 values"),
    ({"prompt": COLUMNS["label"]}, RECORDS, "not as features.json says",
     "found bytes where int is told"),
    ({"label": _TEXT}, RECORDS, "not as features.json says",
     "found int where bytes is told"),
    ({"chosen": _TEXT}, RECORDS, "not UTF-8", "invalid start byte at byte 1"),
    (COLUMNS, [b'{"prompt": "q"}'] * 3, "not as features.json says", ""),
    (COLUMNS, [each[:-9] for each in RECORDS], "not as features.json says",
     "is cut off"),
  ],
)  # fmt: skip
def test_a_record_that_is_not_as_told_is_refused(
  tmp_path, columns, records, kind, reason
):
  found = _rows(_folder(tmp_path, columns, records))
  assert [(each.row, each.kind) for each in found] == [
    (number, kind) for number in (1, 2, 3)
  ]
  assert all(reason in each.reason for each in found)


@pytest.mark.parametrize(
  "told", ["[]", "{}", '{"type": "a.b.C"}', "{", '{"featuresDict": 3}']
)
def test_features_that_are_not_listed_are_told(tmp_path, told):
  (_folder(tmp_path) / "features.json").write_text(told)
  with pytest.raises(
    UserError, match=r"described by .*features\.json does not"
  ):
    _rows(tmp_path)


def test_columns_of_other_kinds_are_left_out(tmp_path):
  nested = {"sequence": {"feature": COLUMNS["scores"]}}
  zipped = json.loads(json.dumps(COLUMNS["axes"]))
  zipped["tensor"]["encoding"] = "zlib"
  columns = {
    "prompt": _TEXT, "votes": nested, "axes": zipped,
    "film": {"video": {}}, "grid": COLUMNS["grid"],
  }  # fmt: skip
  assert {tuple(row.values) for row in _rows(_folder(tmp_path, columns))} == {
    ("prompt",)
  }


def test_numbers_are_packed_or_not():
  """As other writers do; the largest and smallest integers too."""
  field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data
  entry = lambda values: field(1, field(1, field(1, b"x") + field(2, values)))
  floats = np.array([0.5, -2.0], "<f4").tobytes()
  for listed in (field(1, floats), b"\x0d" + floats[:4] + b"\x0d" + floats[4:]):
    assert parse_example(entry(field(2, listed))) == {"x": [0.5, -2.0]}
  ints = b"\x05", b"\xff" * 9 + b"\x01", b"\xff" * 8 + b"\x7f"
  for listed in (field(1, b"".join(ints)), b"".join(b"\x08" + i for i in ints)):
    assert parse_example(entry(field(3, listed))) == {"x": [5, -1, 2**63 - 1]}
  assert parse_example(b"") == {}


def test_a_record_with_bytes_changed(tmp_path):
  """It is read, or refused by its number."""
  read = tfds.row_reader(str(_folder(tmp_path)))
  whole = min(RECORDS, key=len)

  @settings(max_examples=300, deadline=None, derandomize=True, database=None)
  @given(
    st.integers(0, len(whole) - 1), st.integers(1, 255),
    st.integers(1, len(whole)),
  )  # fmt: skip
  def check(place, change, end):
    changed = bytearray(whole)
    changed[place] ^= change
    for record in (bytes(changed), bytes(changed[:end])):
      try:
        values = read(record)
      except ValueError as error:
        values = {"prompt": str(error)}
      assert isinstance(values["prompt"], str)

  check()


def test_a_file_of_tfds_that_is_cut_off_is_named(tmp_path):
  file = _folder(tmp_path) / GOLDEN["file"]
  file.write_bytes(file.read_bytes()[:-1000])
  with pytest.raises(
    UserError, match=r"array_record-00000-of-00001.*not a whole"
  ):
    _rows(tmp_path)
