"""Files that are whole or not there."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A name beside `path`; what is written there takes its place at the end.

  An error or a kill before leaves `path` as it was.
  """
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    yield partial
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
