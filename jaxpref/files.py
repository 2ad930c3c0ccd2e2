"""Files that are whole or not there, and Python files that users name."""

from collections.abc import Iterator
import contextlib
import importlib.util
import os
import pathlib
import types
import uuid

from jaxpref.errors import UserError


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


def import_file(
  path: str, told: str, defines: str, example: str = ""
) -> types.ModuleType:
  """The module that a Python file is.

  Args:
    path: the file.
    told: what named it, for errors.
    defines: what it must define.
    example: a file that does, for errors.

  Raises UserError where there is no such file, or it cannot be run.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(
      f"{told}: there is no such file. Give a Python file with {defines}()"
      + (f", for example {example}." if example else ".")
    )
  spec = importlib.util.spec_from_file_location("jaxpref_file_given", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{told}: not a Python file.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # whatever the file does
    raise UserError(
      f"{told}: the file cannot be run: {type(error).__name__}: {error}."
    ) from error
  if not hasattr(module, defines):
    raise UserError(f"{told}: the file defines no {defines}().")
  return module
