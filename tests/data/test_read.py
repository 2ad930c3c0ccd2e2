import gzip
import json
import pathlib

from array_record.python.array_record_module import ArrayRecordWriter
import pyarrow as pa
from pyarrow import ipc, parquet
import pytest

from jaxpref.data.read import Refusal, Row, read_rows, source_files
from jaxpref.errors import UserError

ROWS = [{"text": f"row {i}, ünïcode \u2028 too"} for i in range(1, 8)]


def _write(file: pathlib.Path, rows=ROWS) -> pathlib.Path:
  lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
  if file.name.endswith(".parquet"):
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=3)
  elif file.name.endswith(".arrow"):
    table = pa.Table.from_pylist(rows)
    kind = "new_file" if file.name.startswith("file") else "new_stream"
    with getattr(ipc, kind)(file, table.schema) as out:
      out.write_table(table, max_chunksize=3)
  elif file.name.endswith(".array_record"):
    out = ArrayRecordWriter(str(file), "group_size:1")
    for line in lines.split("\n")[:-1]:
      out.write(line.encode())
    out.close()
  elif file.name.endswith(".zst"):
    file.write_bytes(pa.compress(lines.encode(), "zstd", asbytes=True))
  elif file.name.endswith(".gz"):
    file.write_bytes(gzip.compress(lines.encode()))
  elif file.name.endswith(".json"):
    file.write_text(json.dumps(rows, indent=1))
  else:
    file.write_bytes(lines.encode())
  return file


def _read(path) -> list:
  return list(read_rows(source_files(path)))


NAMES = [
  "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow",
  "file.arrow", "a.array_record", "a.json",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_numbers_every_row(tmp_path, name):
  folder = str(tmp_path)
  expected = [Row(name, i, row, folder) for i, row in enumerate(ROWS, 1)]
  assert _read(_write(tmp_path / name)) == expected
  assert expected[6].id == f"{name}:7"


def test_reads_a_folder_in_order_of_names(tmp_path):
  for name in ("c.parquet", "a.jsonl", "b.jsonl.gz"):
    _write(tmp_path / name, ROWS[:2])
  (tmp_path / "README.md").write_text("not data")
  (tmp_path / ".hidden.jsonl").write_text("not data")
  found = [(row.file, row.number) for row in _read(tmp_path)]
  names = ("a.jsonl", "b.jsonl.gz", "c.parquet")
  assert found == [(name, i) for name in names for i in (1, 2)]


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": "four"}')
  assert _read(file) == [
    Row("a.jsonl", 1, {"text": "one"}, str(tmp_path)),
    Row("a.jsonl", 4, {"text": "four"}, str(tmp_path)),
  ]


def test_a_list_in_json_is_read_where_it_is_named(tmp_path):
  """In a folder such files mostly describe the data; lines are read too."""
  _write(tmp_path / "a.jsonl", ROWS[:2])
  file = tmp_path / "dataset_info.json"
  file.write_text('[{"text": "one"}, 3]')
  assert {row.file for row in _read(tmp_path)} == {"a.jsonl"}
  for path in (file, tmp_path / "*.json"):
    row, refusal = _read(path)
    assert row.values == {"text": "one"}
    assert refusal[:3] == (file.name, 2, "not a JSON object")
  file.write_text('{"text": "one"}\n{"text": "two"}\n')
  assert [row.number for row in _read(file)] == [1, 2]


def test_csv(tmp_path):
  """Cells are texts; bad rows are told by their number, and left out."""
  file = tmp_path / "a.csv"
  file.write_bytes(
    b"\xef\xbb\xbfprompt,chosen,rejected\r\n"
    b'"a, ""b""\nc",1,\r\n\r\n'
    b"one,two\nx,\xff,y\n"
    b'"q"z,1,2\n' + b"long," + b"a" * 200_000 + b",b\n"
  )
  first, *refused, last = _read(file)
  values = {"prompt": 'a, "b"\nc', "chosen": "1", "rejected": None}
  assert first == Row("a.csv", 1, values, str(tmp_path))
  assert [(row.row, row.kind) for row in refused] == [
    (3, "cells that are no columns"), (4, "not UTF-8"), (5, "not CSV"),
  ]  # fmt: skip
  assert refused[0].reason.endswith("2 cells, and the first line names 3")
  assert (last.number, len(last.values["chosen"])) == (6, 200_000)


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ('a,b\n1,2\n3,"4\n5,6\n', "after row 1: .*in row 2 a quote is opened"),
    ("a,a\n1,2\n", "a name of its own for each column: found"),
    ("\n", "each column: found nothing"),
  ],
)
def test_csv_that_is_not_whole(tmp_path, text, told):
  file = tmp_path / "a.csv"
  file.write_text(text)
  with pytest.raises(UserError, match=told):
    _read(file)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(
  ("line", "kind", "found"),
  [
    (b'{"text": "a" "b"}', "not JSON", "',' delimiter at column 14"),
    (b'{"text": "\xff"}', "not UTF-8", "invalid start byte at byte 11"),
    (b'["text"]', "not a JSON object", "a list"),
    (b"null", "not a JSON object", "a NoneType"),
    (b"[" * 100_000, "not JSON", ""),
    (b'{"n": ' + b"1" * 5000 + b"}", "not JSON", "digits"),
  ],
)
def test_a_broken_line_is_refused_by_file_and_line(
  tmp_path, suffix, line, kind, found
):
  good = json.dumps(ROWS[0]).encode()
  whole = b"\n".join([good] * 6 + [line] + [good])
  file = tmp_path / f"a{suffix}"
  file.write_bytes(gzip.compress(whole) if suffix.endswith("gz") else whole)
  rows = _read(file)
  refusal = rows.pop(6)
  assert isinstance(refusal, Refusal)
  assert (refusal.file, refusal.row, refusal.kind) == (file.name, 7, kind)
  assert found in refusal.reason
  assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6, 8]


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
  values = pa.array([b"one", b"\xff", b"three"], pa.binary())
  column = pa.Array.from_buffers(pa.string(), 3, values.buffers())
  parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
  first, second, third = _read(tmp_path / "a.parquet")
  assert (first.values, third.values) == ({"text": "one"}, {"text": "three"})
  assert second[:3] == ("a.parquet", 2, "not UTF-8")


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("damage", ["cut off", "another kind"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
  file = _write(tmp_path / name)
  whole = file.read_bytes()
  cut = whole[: len(whole) - 60] if damage == "cut off" else b'[{"text": ""}\n'
  file.write_bytes(cut)
  with pytest.raises(UserError, match=rf"{name}.*(Fetch|write it) .*again"):
    _read(file)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b"", r"a\.jsonl is empty"),
    ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
    ("a.txt", b"\n \n", r"a\.txt is empty"),
    ("a.jsonl.gz", gzip.compress(b"", mtime=0), r"a\.jsonl\.gz is empty"),
    ("a.tsv", b"text\n", r"a\.tsv: .*must end in \.jsonl, \.jsonl\.gz, \.j"),
  ],
)
def test_a_file_that_holds_nothing_is_named(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message):
    _read(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match=r"nowhere\.jsonl' does not exist"):
    _read(tmp_path / "nowhere.jsonl")
  with pytest.raises(UserError, match="'' does not exist"):
    _read("")
  with pytest.raises(UserError, match="holds no file whose name ends in"):
    _read(tmp_path)


def test_an_empty_parquet_file_is_named(tmp_path):
  table = pa.table({"text": pa.array([], pa.string())})
  parquet.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(UserError, match=r"a\.parquet is empty"):
    _read(tmp_path)


def test_times_are_left_out_and_what_python_cannot_hold_is_refused(tmp_path):
  """No format reads times, of which Python has fewer."""
  nanoseconds = pa.array([1, 2], pa.timestamp("ns"))
  table = pa.table({"text": ["a", "b"], "created_at": nanoseconds})
  parquet.write_table(table, tmp_path / "a.parquet")
  assert [row.values for row in _read(tmp_path / "a.parquet")] == [
    {"text": "a"},
    {"text": "b"},
  ]
  kind = pa.struct({"at": pa.timestamp("s")})
  nested = pa.array([{"at": 10**14}, {"at": 0}], kind)  # in three million years
  table = pa.table({"text": ["a", "b"], "nested": nested})
  parquet.write_table(table, tmp_path / "b.parquet")
  first, second = _read(tmp_path / "b.parquet")
  assert first[:3] == ("b.parquet", 1, "not Python values")
  assert second.values["text"] == "b"


def test_the_rows_before_a_cut_are_counted(tmp_path):
  """Each line is long enough not to wait in a buffer."""
  lines = [{"text": str(i) * 200_000} for i in range(8)]
  file = _write(tmp_path / "a.jsonl.gz", lines)
  file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(UserError, match=r"a\.jsonl\.gz cannot be .* row [5-8]:"):
    _read(file)
