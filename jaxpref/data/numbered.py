"""Bytes by number, in ArrayRecord files that several processes write.

A file holds a fixed number of them and gets its name when it is whole: what was
stopped goes on with the next file. Processes share the files out; where each
has a disk of its own, it then writes the others' too.
"""

from collections.abc import Callable, Iterable
import functools
import pathlib

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
import jax

from jaxpref.files import replacing
from jaxpref.hosts import wait_for_all

PER_FILE = 256


def missing(
  folder: pathlib.Path, kind: str, count: int, *, shared: bool
) -> list[int]:
  """Numbers of the files that this process has to write.

  Args:
    folder: of the files.
    kind: of what they hold.
    count: of all that they hold.
    shared: whether the processes share the files out. After that, on disks of
      their own, each has those of the others to write.
  """
  first, step = (jax.process_index(), jax.process_count()) if shared else (0, 1)
  numbers = range(first, -(-count // PER_FILE), step)
  return [n for n in numbers if not _file(folder, kind, n).exists()]


def write(
  folder: pathlib.Path, kind: str, number: int, entries: Iterable[bytes]
) -> None:
  """Writes the file of a number; nothing, where the entries raise."""
  with replacing(_file(folder, kind, number)) as partial:
    # Groups of one, so that any record is read by itself.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for entry in entries:
      writer.write(entry)
    writer.close()


@functools.cache
def stored(
  folder: pathlib.Path, kind: str, count: int
) -> ArrayRecordDataSource:
  """All `count` of a kind, by number."""
  numbers = range(-(-count // PER_FILE))
  return ArrayRecordDataSource([str(_file(folder, kind, n)) for n in numbers])


def fill(write: Callable[[bool], None]) -> None:
  """Has everything written that is missing, by `write(shared)`; see `missing`.

  All processes must call it.
  """
  for shared in (True, False):
    write(shared)
    wait_for_all()


def _file(folder: pathlib.Path, kind: str, number: int) -> pathlib.Path:
  return folder / f"{kind}-{number:06d}.array_record"
