"""Files to rows, whatever the files are."""

from collections.abc import Callable, Iterator, Sequence
import pathlib

from jaxpref.data import containers, source, tars
from jaxpref.data.containers import Damaged, Refusal, Row, Rows
from jaxpref.data.source import Source
from jaxpref.errors import UserError

__all__ = [
  "READERS",
  "Refusal",
  "Row",
  "Source",
  "read_rows",
  "reader",
  "source_files",
]

READERS = {**containers.READERS, ".tar": tars.read_tar}
"""By what the names of files end with."""

# In a folder such files mostly describe the data; a path may still name one.
_NAMED = (".json", ".txt")
SUFFIXES = tuple(end for end in READERS if end not in _NAMED)


def source_files(path: str | pathlib.Path) -> list[Source]:
  """The data files that `path` stands for; see `source.source_files`."""
  named = str(path).lower().endswith(_NAMED)
  return source.source_files(path, tuple(READERS) if named else SUFFIXES)


def read_rows(files: Sequence[Source]) -> Iterator[Row | Refusal]:
  """Every row of the files, in order, or the reason why it cannot be read.

  Raises UserError for a file that is empty, cut off or of another kind than
  its name says.
  """
  for file in files:
    count, folder = 0, file.folder
    try:
      for row in reader(file)(file):
        count += 1
        yield row._replace(folder=folder) if isinstance(row, Row) else row
    except Damaged as error:
      raise UserError(
        f"{file} cannot be read after row {count}: it is {error}. It was cut "
        "off or damaged, or is of another kind. Fetch or write it again."
      ) from error
    except OSError as error:
      raise UserError(f"{file} cannot be read: {error}.") from error
    if not count:
      raise source.empty(file)


def reader(file: Source) -> Callable[[Source], Rows]:
  """What reads a file of its name."""
  return next(READERS[end] for end in READERS if file.kind.endswith(end))
