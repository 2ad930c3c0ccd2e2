"""Bytes by number, in ArrayRecord files that several processes write.

A file holds a fixed number of them and gets its name when it is whole: what was
stopped goes on with the next file, and processes share the files out.
"""

from collections.abc import Iterable
import functools
import pathlib

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
import jax

from jaxpref.files import replacing

PER_FILE = 256


def missing(folder: pathlib.Path, kind: str, count: int) -> list[int]:
  """Numbers of the files that this process has to write."""
  numbers = range(
    jax.process_index(), -(-count // PER_FILE), jax.process_count()
  )
  return [n for n in numbers if not _file(folder, kind, n).exists()]


def write(
  folder: pathlib.Path, kind: str, number: int, entries: Iterable[bytes]
) -> None:
  """Writes the file of a number."""
  with replacing(_file(folder, kind, number)) as partial:
    # Groups of one, so that any record is read by itself.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for entry in entries:
      writer.write(entry)
    writer.close()


def stored(folder: pathlib.Path, kind: str) -> ArrayRecordDataSource:
  """All of a kind, by number."""
  return _open(tuple(map(str, sorted(folder.glob(f"{kind}-*")))))


def wait() -> None:
  """Until all processes are here, and so all files there."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("jaxpref.images")


def _file(folder: pathlib.Path, kind: str, number: int) -> pathlib.Path:
  return folder / f"{kind}-{number:06d}.array_record"


@functools.cache
def _open(files: tuple[str, ...]) -> ArrayRecordDataSource:
  return ArrayRecordDataSource(files)
