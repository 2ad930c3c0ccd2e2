"""Samples of webdataset's tar files: rows with images, and what is refused."""

import importlib.util
import io
import json
import pathlib
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from jaxpref import config
from jaxpref.data import build, tars
from jaxpref.data.image_index import IndexedImages, read_images, write_index
from jaxpref.data.pictured import pictured
from jaxpref.data.read import Refusal, read_rows, source_files
from jaxpref.errors import UserError
from jaxpref.types import Image

_spec = importlib.util.spec_from_file_location(
  "make_image_schemas",
  pathlib.Path(__file__).parent / "schemas/make_image_schemas.py",
)
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)
RED, LIME, JPEG = schemas.RED, schemas.LIME, schemas.JPEG


def _bytes(content):
  if isinstance(content, bytes):
    return content
  text = content if isinstance(content, str) else json.dumps(content)
  return text.encode()


def _write(file, members):
  """As webdataset's TarWriter does; a member may be a TarInfo of its own."""
  with tarfile.open(file, "w") as archive:
    for name, content in members:
      if isinstance(content, tarfile.TarInfo):
        archive.addfile(content)
        continue
      info = tarfile.TarInfo(name)
      info.size = len(data := _bytes(content))
      archive.addfile(info, io.BytesIO(data))
  return file


def _pair(key, prompt="a cat"):
  return [
    (f"{key}.json", {"prompt": prompt}),
    (f"{key}.chosen.jpg", JPEG),
    (f"{key}.rejected.png", LIME),
  ]


def _rows(path):
  return list(read_rows(source_files(path)))


def _records(path):
  tally, told = build.Tally(), []
  files = source_files(path)
  return list(build.records(files, "auto", tally, told.append)), tally, told


def _contents(record):
  return [each.content for each in record.responses]


PICK = {"caption": "a cat", "label_0": 0.5, "label_1": 0.5, "has_label": True}
RANKED = {"prompt": "a cat", "images": ["0.png", "1.JPG"], "ranking": [2, 1]}
OWN = {
  "prompt": "a cat",
  "responses": [{"content": {"image": f"{i}.png"}} for i in (0, 1)],
  "comparisons": [{"better": 1, "worse": 0}],
}


@pytest.mark.parametrize(
  ("members", "name", "images", "compared"),
  [
    (_pair("k"), "image_pair", ["chosen.jpg", "rejected.png"], [(0, 1, 1.0)]),
    (
      [("k.rejected.png", LIME), ("k.txt", "a cat"), ("k.chosen.png", RED)],
      "image_pair", ["chosen.png", "rejected.png"], [(0, 1, 1.0)],
    ),
    (
      [("k.0.png", RED), ("k.1.png", LIME),
       ("k.json", {"prompt": "a cat", "chosen": "1.png", "rejected": "0.png"})],
      "image_pair", ["1.png", "0.png"], [(0, 1, 1.0)],
    ),
    (
      [("k.json", RANKED), ("k.0.png", RED), ("k.1.jpg", JPEG)],
      "image_ranked", ["0.png", "1.jpg"], [],
    ),
    (
      [("k.json", RANKED | {"images": ["k.0.png", "k.1.png"]}),
       ("k.0.png", RED), ("k.1.png", LIME)],
      "image_ranked", ["0.png", "1.png"], [],
    ),
    (
      [("k.jpg_0.jpg", JPEG), ("k.jpg_1.png", LIME), ("k.json", PICK)],
      "pickapic", ["jpg_0.jpg", "jpg_1.png"], [(0, 1, 0.5)],
    ),
    (
      [("k.json", OWN), ("k.0.png", RED), ("k.1.png", LIME)],
      "record", ["0.png", "1.png"], [(1, 0, 1.0)],
    ),
  ],
)  # fmt: skip
def test_a_sample_is_read_as_the_formats_of_images(
  tmp_path, members, name, images, compared
):
  (record,), tally, told = _records(_write(tmp_path / "a.tar", members))
  assert not told
  assert tally.formats == {name: 1}
  assert (record.id, record.prompt) == ("a.tar:1", "a cat")
  data = {f"k.{each}".lower(): content for each, content in (
    (member.removeprefix("k."), content) for member, content in members)
  }  # fmt: skip
  assert _contents(record) == [
    Image(data[f"k.{each}"], f"a.tar/k.{each}") for each in images
  ]
  assert [tuple(each)[:3] for each in record.comparisons] == compared


def test_samples_of_texts_are_rows_too(tmp_path):
  members = [
    ("k.txt", "Q: ünïcode"),
    ("k.chosen.txt", " yes"),
    ("k.rejected.txt", " no"),
  ]
  (record,), tally, _ = _records(_write(tmp_path / "a.tar", members))
  assert tally.formats == {"explicit": 1}
  assert (record.prompt, _contents(record)) == ("Q: ünïcode", [" yes", " no"])


def test_names_are_taken_apart_as_webdataset_does(tmp_path):
  """Directories are a part of the key; what has no key is not a member."""
  folder = tarfile.TarInfo("./a.b")
  folder.type = tarfile.DIRTYPE
  members = [
    ("", folder),
    *_pair("./a.b/000"),
    ("a.b/000.npy", b"not read"),
    ("a.b/000.pickle", b"not read"),
    ("a.b/._000.chosen.jpg", b"of a Mac"),
    ("README", b"not data"),
    ("__meta__/0.json", b"not data"),
    *_pair("a.b/001"),
    *_pair("000"),
  ]
  rows = _rows(_write(tmp_path / "a.tar", members))
  assert [row.key for row in rows] == ["a.b/000", "a.b/001", "000"]
  assert all(len(row.members) == 2 for row in rows)


def test_shards_are_numbered_each_from_one(tmp_path):
  """Refused samples count, so that the others keep their numbers."""
  for shard in range(3):
    keys = [f"{shard}{i}" for i in range(4)]
    members = [member for key in keys for member in _pair(key)]
    members[3] = f"{keys[1]}.json", b"{"
    _write(tmp_path / f"train-{shard}.tar", members)
  (tmp_path / "notes.md").write_text("not data")
  expected = [(f"train-{n}.tar", i) for n in range(3) for i in (1, 3, 4)]
  for path in (tmp_path, tmp_path / "train-*.tar"):
    for _ in range(2):
      records, tally, told = _records(path)
      assert [each.id for each in records] == [f"{f}:{i}" for f, i in expected]
      assert tally.rows == 12
      assert [(each.file, each.row) for each in told] == [
        (f"train-{n}.tar", 2) for n in range(3)
      ]
      assert "sample 01: not JSON: .json is not JSON" in told[0].reason


def test_the_images_of_an_index_are_found_again(tmp_path):
  """As a preparation does that goes on where it was stopped."""
  members = [*_pair("0"), ("1.txt", "a dog"), *_pair("2", "a dog")]
  files = source_files(_write(tmp_path / "a.tar", members))
  (folder := tmp_path / "index").mkdir()
  write_index(folder, files, config.Data(), {})
  listed = IndexedImages(folder).listed
  assert listed["captions"] == ["a cat", "a dog"]
  images = list(read_images(files, "auto", listed["images"]))
  assert [image.data for image in images] == [JPEG, LIME]
  (refused,) = (folder / "rejected.jsonl").read_text().splitlines()
  assert json.loads(refused)["row"] == 2


def _other(kind, name="k.chosen.jpg", **given):
  info = tarfile.TarInfo(name)
  info.type = kind
  for key, value in given.items():
    setattr(info, key, value)
  return info


@pytest.mark.parametrize(
  ("members", "reason"),
  [
    ([("k.json", [3])], "sample k: not a JSON object: .json is not a JSON obj"),
    ([("k.json", b"\xff")], "sample k: not UTF-8: .json is not UTF-8: invalid"),
    ([("k.txt", b"a\xff")], r"not UTF-8: .txt: invalid start byte at byte 2"),
    ([("k.png", RED)], "sample k: unknown columns: no columns"),
    (
      _pair("k")[1:],
      "sample k: no prompt: the row has the columns chosen, rej",
    ),
    (_pair("k")[:2], "sample k: no rejected"),
    (
      [("k.json", RANKED), ("k.0.png", RED)],
      r"image not in its sample: '1\.JPG' is none of .* images, '0\.png'; a",
    ),
    (
      [("k.json", RANKED | {"images": ["../b.png", "/etc/a.png"]})],
      r"'\.\./b\.png' is none of .*there are none'; a column names one by",
    ),
    ([*_pair("k"), ("k.json", {})], r"member twice: there are two of \.json"),
    ([*_pair("k"), ("k.CHOSEN.jpg", RED)], "there are two of .chosen.jpg"),
    (
      [*_pair("k"), ("", _other(tarfile.SYMTYPE, "k.a.jpg", linkname="/etc"))],
      r"sample k: member is not a file: \.a\.jpg is a link, a device or has",
    ),
    ([("", _other(tarfile.LNKTYPE, linkname="x")), *_pair("k")], "not a file"),
    ([("", _other(tarfile.CHRTYPE)), *_pair("k")], "member is not a file"),
    ([("", _other(tarfile.FIFOTYPE)), *_pair("k")], "member is not a file"),
  ],
)
def test_a_sample_is_refused_by_its_key(tmp_path, members, reason):
  members = [*_pair("i"), *members, *_pair("l")]
  records, _, told = _records(_write(tmp_path / "a.tar", members))
  assert [each.id for each in records] == ["a.tar:1", "a.tar:3"]
  (refusal,) = told
  assert (refusal.file, refusal.row) == ("a.tar", 2)
  with pytest.raises(AssertionError, match=reason):
    raise AssertionError(refusal.reason)
  assert not list(tmp_path.glob("*.jpg"))


def test_a_sample_in_pieces_is_refused(tmp_path):
  """As where all of one kind come first: nothing is read by halves."""
  members = [member for key in "ab" for member in _pair(key)]
  file = _write(
    tmp_path / "a.tar", members[::3] + members[1::3] + members[2::3]
  )
  records, tally, told = _records(file)
  assert not records
  assert tally.rows == len(told) == 6
  assert {each.kind for each in told[2:]} == {"sample in pieces"}
  assert "sample a: " in told[2].reason


def test_a_member_that_is_too_large_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(tars, "MAX_BYTES", len(JPEG) - 1)
  records, _, (refusal,) = _records(_write(tmp_path / "a.tar", _pair("k")))
  assert not records
  assert refusal.kind == "member too large"
  assert (
    f".chosen.jpg has {len(JPEG)} bytes, and {len(JPEG) - 1} are allowed"
    in (refusal.reason)
  )


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
  members = [*_pair("i"), *_pair("k")[:2], ("k.rejected.png", LIME[:40])]
  files = source_files(_write(tmp_path / "a.tar", members))
  told = []
  (found,) = pictured(files, "auto", build.Tally(), told.append)
  assert [each.shape for each in found.pixels] == [(6, 8, 3)] * 2
  (refusal,) = told
  assert (refusal.file, refusal.row) == ("a.tar", 2)
  assert "a.tar/k.rejected.png" in refusal.reason


def _whole(tmp_path):
  members = [member for key in range(6) for member in _pair(str(key))]
  file = _write(tmp_path / "whole.tar", members)
  with tarfile.open(file) as archive:
    ends = [info.offset for info in archive][3::3]
    ends.append(archive.offset)
  return file.read_bytes(), ends


def _until_error(file):
  """What is read, and then the message of the error, '' for none."""
  rows = []
  try:
    for row in read_rows(source_files(file)):
      rows.append(row)
  except UserError as error:
    return rows, str(error)
  return rows, ""


@pytest.mark.parametrize("step", [113, 512])
def test_a_tar_cut_off_anywhere_is_named(tmp_path, step):
  """The samples that are whole come first; the last one needs its end."""
  whole, ends = _whole(tmp_path)
  first = len(_bytes(_pair("0")[0][1]))
  file = tmp_path / "cut.tar"
  for cut in range(step, ends[-1] + 512, step):
    file.write_bytes(whole[:cut])
    rows, error = _until_error(file)
    assert "cut.tar cannot be read after row" in error
    # The next sample's first member is what says that one is whole.
    assert len(rows) == sum(cut >= end + 512 + first for end in ends[:-1])
    assert [row.key for row in rows] == [str(i) for i in range(len(rows))]
  file.write_bytes(whole[: ends[-1] + 512])
  assert len(_rows(file)) == 6


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (lambda whole, end: whole[:end], "it ends at byte .* without the zeros"),
    (lambda whole, end: whole[: end - 100], "unexpected end of data, at byte"),
    (lambda whole, end: whole[:end] + b"x" * 1024, "no header at byte"),
    (lambda whole, end: whole + whole, "more than one tar file"),
    (lambda whole, end: b"[{}]" + whole, "bad checksum, at byte 0"),
    (lambda whole, end: b"\0" * 10240, "is empty: it holds no row"),
  ],
)
def test_a_damaged_tar_is_told_with_where(tmp_path, change, reason):
  whole, ends = _whole(tmp_path)
  (file := tmp_path / "a.tar").write_bytes(change(whole, ends[-1]))
  with pytest.raises(UserError, match=rf"a\.tar .*({reason})"):
    _rows(file)


def test_a_tar_with_a_byte_changed(tmp_path):
  whole, _ = _whole(tmp_path)
  file = tmp_path / "changed.tar"

  @settings(max_examples=150, deadline=None, derandomize=True, database=None)
  @given(
    st.integers(0, len(whole) // 512 - 1), st.integers(0, 511),
    st.integers(1, 255), st.booleans(),
  )  # fmt: skip
  def check(block, place, change, mended):
    changed = bytearray(whole)
    start = block * 512
    changed[start + place] ^= change
    if mended:  # of a header: what else it says is then believed
      changed[start + 148 : start + 156] = b" " * 8
      total = sum(changed[start : start + 512])
      changed[start + 148 : start + 156] = b"%06o\0 " % total
    file.write_bytes(changed)
    rows, error = _until_error(file)
    assert file.name in (error or file.name)
    assert all(row.file == file.name for row in rows)
    assert all(row.reason for row in rows if isinstance(row, Refusal))

  check()
