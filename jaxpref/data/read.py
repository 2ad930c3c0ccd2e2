"""Files to rows: JSONL, JSONL.gz and Parquet, one file or a folder of them.

A row that cannot be read is a `Refusal` among the rows, never an exception; a
file that cannot be read is a UserError.
"""

from collections.abc import Callable, Iterator
import gzip
import json
import pathlib
from typing import Any, NamedTuple
import zlib

from jaxpref.errors import UserError


class Row(NamedTuple):
  """One row of a file; `number` counts lines (or Parquet rows) from 1."""

  file: str
  number: int
  values: dict[str, Any]

  @property
  def id(self) -> str:
    return f"{self.file}:{self.number}"


class Refusal(NamedTuple):
  """Why a row is not used; `kind` is the reason without what was found."""

  file: str
  row: int
  kind: str
  reason: str


def source_files(path: str | pathlib.Path) -> list[pathlib.Path]:
  """The data files that `path`, a file or a folder, stands for, sorted.

  Raises UserError where there is none, or one is empty.
  """
  root = pathlib.Path(path).expanduser()
  if str(path) and root.is_dir():
    files = sorted(each for each in root.iterdir() if _reader(each))
    if not files:
      raise UserError(
        f"The data folder {root} holds no file whose name ends in {_SUFFIXES}; "
        "put the data files directly in it, or name another path."
      )
  elif not str(path) or not root.exists():  # Path('') is '.'
    raise UserError(
      f"The data path {str(path)!r} does not exist. Set data.path (or "
      f"data.eval_path) to a file whose name ends in {_SUFFIXES}, or to a "
      "folder of such files."
    )
  elif not _reader(root):
    raise UserError(
      f"{root}: data files are told apart by their names, which must end in "
      f"{_SUFFIXES}; convert or rename the file."
    )
  else:
    files = [root]
  for file in files:
    if not file.stat().st_size:
      raise _empty(file)
  return files


def read_rows(
  files: list[pathlib.Path],
) -> Iterator[Row | Refusal]:
  """Every row of the files, in order, or the reason why it cannot be read.

  Raises UserError for a file that is empty, cut off or of another kind than
  its name says.
  """
  for file in files:
    reader, found = _reader(file), False
    assert reader is not None
    for found_row in reader(file):
      found = True
      yield found_row
    if not found:
      raise _empty(file)


def _empty(file: pathlib.Path) -> UserError:
  return UserError(
    f"{file} is empty: it holds no row. Write the data again, or name another "
    "file in data.path."
  )


def _read_jsonl(file: pathlib.Path) -> Iterator[Row | Refusal]:
  with open(file, "rb") as lines:
    yield from _parse_lines(file.name, lines)


def _read_gzip(file: pathlib.Path) -> Iterator[Row | Refusal]:
  try:
    with gzip.open(file, "rb") as lines:
      yield from _parse_lines(file.name, lines)
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(
      f"{file} is not a whole gzip file ({error}): it was cut off or damaged. "
      "Fetch or compress it again."
    ) from error


def _parse_lines(name: str, lines: Any) -> Iterator[Row | Refusal]:
  for number, line in enumerate(lines, 1):
    if number == 1:
      line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    if line.strip():
      yield _parse_line(name, number, line)


def _parse_line(name: str, number: int, line: bytes) -> Row | Refusal:
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
  if not isinstance(values, dict):
    found = f"a {type(values).__name__}; a row is an object {{...}}"
    return refuse("not a JSON object", found)
  return Row(name, number, values)


def _read_parquet(file: pathlib.Path) -> Iterator[Row | Refusal]:
  import pyarrow
  from pyarrow import parquet

  number = 0
  try:
    with parquet.ParquetFile(file) as table:
      for group in range(table.num_row_groups):
        for batch in table.iter_batches(_PARQUET_ROWS, row_groups=[group]):
          for values in _batch_rows(batch):
            number += 1
            if isinstance(values, UnicodeDecodeError):
              reason = f"not UTF-8: {values.reason}"
              yield Refusal(file.name, number, "not UTF-8", reason)
            else:
              yield Row(file.name, number, values)
  except (pyarrow.ArrowException, OSError) as error:
    raise UserError(
      f"{file} cannot be read as Parquet ({error}): it was cut off or damaged, "
      "or is of another kind. Fetch or write it again."
    ) from error


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
  try:
    yield from batch.to_pylist()
  except UnicodeDecodeError:
    for i in range(batch.num_rows):
      try:
        yield from batch.slice(i, 1).to_pylist()
      except UnicodeDecodeError as error:
        yield error


_PARQUET_ROWS = 256  # turned into Python objects at a time
_READERS: dict[str, Callable[[pathlib.Path], Iterator[Row | Refusal]]] = {
  ".jsonl": _read_jsonl,
  ".jsonl.gz": _read_gzip,
  ".parquet": _read_parquet,
}
_SUFFIXES = ".jsonl, .jsonl.gz or .parquet"


def _reader(file: pathlib.Path) -> Any:
  if file.name.startswith("."):
    return None
  for suffix, reader in _READERS.items():
    if file.name.lower().endswith(suffix):
      return reader
  return None
