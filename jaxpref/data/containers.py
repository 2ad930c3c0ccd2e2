"""The rows of files: JSON, CSV, Parquet, Arrow, ArrayRecord, prompts by line.

A row that cannot be read is a `Refusal` among the rows, never an exception;
what else goes wrong is a `Damaged` file.
"""

from collections.abc import Callable, Iterator, Mapping
import csv
import gzip
import io
import itertools
import json
import re
from typing import Any, NamedTuple
import zlib

from jaxpref.data import tfds
from jaxpref.data.source import Source


class Row(NamedTuple):
  """One row of a file; `number` counts lines (or rows, or items) from 1."""

  file: str
  number: int
  values: dict[str, Any]
  folder: str = ""  # the file's, or its URL: where relative paths begin
  # Of an archive: what names the row there, and its images by their names.
  key: str = ""
  members: Mapping[str, bytes] | None = None

  @property
  def id(self) -> str:
    return f"{self.file}:{self.number}"


class Refusal(NamedTuple):
  """Why a row is not used; `kind` is the reason without what was found."""

  file: str
  row: int
  kind: str
  reason: str


class Damaged(Exception):
  """A file that is cut off, or of another kind than its name says."""


Rows = Iterator[Row | Refusal]


def _jsonl(file: Source) -> Rows:
  with file.open() as lines:
    yield from _parse_lines(file.name, lines)


def read_text(file: Source) -> Rows:
  """A prompt a line; lines with nothing on them are passed over."""
  with file.open() as source:
    # What is no UTF-8 is told by its row, by what takes its place.
    lines = io.TextIOWrapper(source, "utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(lines, 1):
      if _LOST.search(line):
        yield Refusal(file.name, number, "not UTF-8", "not UTF-8")
      elif line.strip():
        yield Row(file.name, number, {"prompt": line.removesuffix("\n")})


def _gzip(file: Source) -> Rows:
  try:
    with file.open() as source, gzip.open(source, "rb") as lines:
      yield from _parse_lines(file.name, lines)
  except (EOFError, OSError, zlib.error) as error:
    raise Damaged(f"not a whole gzip file ({error})") from error


def _zstd(file: Source) -> Rows:
  import pyarrow

  try:
    with (
      file.open() as source,
      pyarrow.CompressedInputStream(source, "zstd") as stream,
    ):
      yield from _parse_lines(file.name, io.BufferedReader(stream))
  except (OSError, pyarrow.ArrowException) as error:
    raise Damaged(f"not a whole zstd file ({error})") from error


def _parse_lines(name: str, lines: Any) -> Rows:
  for number, line in enumerate(lines, 1):
    if number == 1:
      line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    if line.strip():
      yield parse_json(name, number, line)


def _json(file: Source) -> Rows:
  """A list of objects, as some data are published; else lines."""
  with file.open() as source:
    whole = source.read().removeprefix(b"\xef\xbb\xbf")
  if not whole.lstrip().startswith(b"["):
    yield from _parse_lines(file.name, io.BytesIO(whole))
    return
  try:
    items = json.loads(whole)
  except (RecursionError, ValueError) as error:
    raise Damaged(f"not a whole list of JSON ({error})") from error
  for number, values in enumerate(items, 1):
    yield _object(file.name, number, values)


def _csv(file: Source) -> Rows:
  """The first line names the columns; every cell is a text, an empty one null.

  Rows are counted, not lines: a cell in quotes may hold several.
  """
  with file.open() as source:
    # What is no UTF-8 is told by its row, by what takes its place.
    lines = io.TextIOWrapper(
      source, "utf-8-sig", errors="surrogateescape", newline=""
    )
    csv.field_size_limit(2**31 - 1)  # a setting of the process; 128 KiB before
    reader = csv.reader(lines, strict=True)
    try:
      columns = next(reader, [])
    except csv.Error as error:
      raise Damaged(f"not a whole CSV file ({error})") from None
    if not columns or len(set(columns)) < len(columns):
      told = ", ".join(map(repr, columns)) or "nothing"
      raise Damaged(f"without a name of its own for each column: found {told}")
    if any(map(_LOST.search, columns)):
      raise Damaged("not UTF-8 in its first line")
    yield from _csv_rows(file.name, columns, reader)


def _csv_rows(name: str, columns: list[str], reader: Iterator[Any]) -> Rows:
  for number in itertools.count(1):
    try:
      cells = next(reader, None)
    except csv.Error as error:
      if str(error) == "unexpected end of data":
        told = f"in row {number} a quote is opened and never closed"
        raise Damaged(f"not a whole CSV file ({told})") from None
      yield Refusal(name, number, "not CSV", f"not CSV: {error}")
      continue
    if cells is None:
      return
    if not cells:  # a line without any
      continue
    if any(_LOST.search(cell) for cell in cells):
      yield Refusal(name, number, "not UTF-8", "not UTF-8")
    elif len(cells) != len(columns):
      kind = "cells that are no columns"
      told = f"{len(cells)} cells, and the first line names {len(columns)}"
      yield Refusal(name, number, kind, f"{kind}: {told}")
    else:
      values = [cell or None for cell in cells]
      yield Row(name, number, dict(zip(columns, values, strict=True)))


_LOST = re.compile("[\udc80-\udcff]")


def parse_json(name: str, number: int, line: bytes) -> Row | Refusal:
  """The row that is written down as an object, or why there is none."""

  def refuse(kind: str, found: Any) -> Refusal:
    return Refusal(name, number, kind, f"{kind}: {found}")

  try:
    values = json.loads(line.decode())
  except UnicodeDecodeError as error:
    return refuse("not UTF-8", f"{error.reason} at byte {error.start + 1}")
  except json.JSONDecodeError as error:
    return refuse("not JSON", f"{error.msg} at column {error.colno}")
  except (RecursionError, ValueError) as error:  # too deep; too many digits
    return refuse("not JSON", error)
  return _object(name, number, values)


def _object(name: str, number: int, values: Any) -> Row | Refusal:
  if isinstance(values, dict):
    return Row(name, number, values)
  kind = "not a JSON object"
  found = f"a {type(values).__name__}; a row is an object {{...}}"
  return Refusal(name, number, kind, f"{kind}: {found}")


def _parquet(file: Source) -> Rows:
  import pyarrow
  from pyarrow import parquet

  try:
    with file.open() as source, parquet.ParquetFile(source) as table:
      columns = _usable(table.schema_arrow)
      for group in range(table.num_row_groups):
        yield from table.iter_batches(
          _ROWS, row_groups=[group], columns=columns
        )
  except (pyarrow.ArrowException, OSError) as error:
    raise Damaged(f"not a whole Parquet file ({error})") from error


def _arrow(file: Source) -> Rows:
  """Both of Arrow's formats; `datasets` writes streams."""
  import pyarrow
  from pyarrow import ipc

  try:
    with file.open() as source:
      is_file = source.read(6) == b"ARROW1"
      source.seek(0)
      if is_file:
        table = ipc.open_file(source)
        batches = map(table.get_batch, range(table.num_record_batches))
      else:
        batches = iter(table := ipc.open_stream(source))
      columns = _usable(table.schema)
      for batch in batches:
        batch = batch.select(columns)
        for start in range(0, batch.num_rows, _ROWS):
          yield batch.slice(start, _ROWS)
  except (pyarrow.ArrowException, OSError) as error:
    raise Damaged(f"not a whole Arrow file ({error})") from error


def _usable(schema: Any) -> list[str]:
  """No format reads times, and not all can be turned into Python's."""
  import pyarrow

  temporal = pyarrow.types.is_temporal
  return [field.name for field in schema if not temporal(field.type)]


def _of_batches(batches: Callable[[Source], Any]) -> Callable[[Source], Rows]:
  def read(file: Source) -> Rows:
    number = 0
    for batch in batches(file):
      for values in _batch_rows(batch):
        number += 1
        if isinstance(values, UnicodeDecodeError):
          reason = f"not UTF-8: {values.reason}"
          yield Refusal(file.name, number, "not UTF-8", reason)
        elif isinstance(values, Exception):
          reason = f"not Python values: {values}"
          yield Refusal(file.name, number, "not Python values", reason)
        else:
          yield Row(file.name, number, values)

  return read


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | Exception]:
  try:
    yield from batch.to_pylist()
  except (ValueError, ArithmeticError):  # UnicodeDecodeError and Arrow's, too
    for i in range(batch.num_rows):
      try:
        yield from batch.slice(i, 1).to_pylist()
      except (ValueError, ArithmeticError) as error:
        yield error


def _array_record(file: Source) -> Rows:
  """A JSON object a record, or what TFDS writes."""
  from array_record.python.array_record_module import ArrayRecordReader

  if not file.is_local:
    raise Damaged("not on this machine, where ArrayRecord must be: copy it")
  try:
    parse = tfds.row_reader(file.folder)
  except ValueError as error:
    raise Damaged(f"described by what cannot be read ({error})") from error
  try:
    reader = ArrayRecordReader(file.path)
    count = reader.num_records()
    if not count:  # as where the index at its end is gone
      raise ValueError("it holds no record")
    for start in range(0, count, _ROWS):
      lines = reader.read(start, min(start + _ROWS, count))
      for number, line in enumerate(lines, start + 1):
        if parse:
          yield _parsed(file.name, number, line, parse)
        else:
          yield parse_json(file.name, number, line)
  except (ValueError, RuntimeError, IndexError) as error:
    raise Damaged(f"not a whole ArrayRecord file ({error})") from error


def _parsed(
  name: str, number: int, record: bytes, parse: Callable[[bytes], Any]
) -> Row | Refusal:
  try:
    return Row(name, number, parse(record))
  except UnicodeDecodeError as error:
    kind, found = "not UTF-8", f"{error.reason} at byte {error.start + 1}"
  except ValueError as error:
    kind, found = "not as features.json says", str(error)
  return Refusal(name, number, kind, f"{kind}: {found}")


_ROWS = 256  # turned into Python objects at a time

READERS: dict[str, Callable[[Source], Rows]] = {
  ".jsonl": _jsonl,
  ".jsonl.gz": _gzip,
  ".jsonl.zst": _zstd,
  ".json": _json,
  ".csv": _csv,
  ".txt": read_text,
  ".parquet": _of_batches(_parquet),
  ".arrow": _of_batches(_arrow),
  ".array_record": _array_record,
}
"""By what the names of files end with."""
