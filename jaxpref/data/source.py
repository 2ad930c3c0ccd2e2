"""Where rows come from: a file, a folder, a pattern, here or at a URL.

fsspec opens what is not on this machine, and lists folders everywhere.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import posixpath
import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from jaxpref.data.tfds import DESCRIBED
from jaxpref.errors import UserError

_SHARD = re.compile(r"-\d{5,}-of-\d{5,}$")


@dataclasses.dataclass(frozen=True)
class Source:
  """A file; `name` is what rows are known by, and unique among those read."""

  path: str
  name: str
  fs: Any = dataclasses.field(default_factory=LocalFileSystem)

  def __str__(self) -> str:
    return self.path if self.is_local else self.fs.unstrip_protocol(self.path)

  @property
  def is_local(self) -> bool:
    return isinstance(self.fs, LocalFileSystem)

  @property
  def folder(self) -> str:
    """The absolute path of the folder it is in, or its URL."""
    path = os.path.abspath(self.path) if self.is_local else str(self)
    return posixpath.dirname(path)

  @property
  def kind(self) -> str:
    """Its name in lower case, without the number of its shard."""
    return _SHARD.sub("", self.name.lower())

  def open(self) -> Any:
    """The bytes, from the beginning; a context manager."""
    return open(self.path, "rb") if self.is_local else self.fs.open(self.path)

  def digest(self) -> str:
    """A hash of the bytes; elsewhere, of what the store says of the file.

    Raises UserError where it cannot be read.
    """
    try:
      if not self.is_local:
        return f"{self.fs.size(self.path)} {self.fs.ukey(self.path)}"
      with open(self.path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as error:
      raise UserError(
        f"{self} cannot be read: {error}. Give this user the right to read it."
      ) from error


def source_files(
  path: str | pathlib.Path, suffixes: Sequence[str]
) -> list[Source]:
  """The data files that `path` stands for, sorted.

  Args:
    path: a file, a folder of files, a folder that `datasets` saved, or a
      pattern such as data/train-*.parquet; on this machine or at a URL.
    suffixes: what names of data files end with.

  Raises UserError where there is none, or one is empty.
  """
  fs, root = _file_system(str(path))
  if not root or not fs.exists(root):  # Path('') is '.'
    found = _matching(fs, root) if set("*?[") & set(root) else []
    if not found:
      raise UserError(
        f"The data path {str(path)!r} does not exist, nor does it match a "
        "file. Set data.path (or data.eval_path) to a file whose name ends in "
        f"{told(suffixes)}, to a folder of such files or to a pattern."
      )
    found = [each for each in found if _is_data(each, suffixes)]
  elif fs.isdir(root):
    found = _in_folder(fs, root, suffixes)
  elif not _is_data(root, suffixes):
    raise UserError(
      f"{root}: data files are told apart by their names, which must end in "
      f"{told(suffixes)}; convert or rename the file."
    )
  else:
    found = [root]
  if not found:
    raise UserError(_nothing(fs, str(path), root, suffixes))
  parent = posixpath.commonpath([posixpath.dirname(each) for each in found])
  files = [Source(each, posixpath.relpath(each, parent), fs) for each in found]
  for file in files:
    if not fs.size(file.path):
      raise empty(file)
  return files


def empty(file: Source) -> UserError:
  return UserError(
    f"{file} is empty: it holds no row. Write the data again, or name another "
    "file in data.path."
  )


def told(suffixes: Sequence[str]) -> str:
  return ", ".join(suffixes[:-1]) + f" or {suffixes[-1]}"


def _file_system(path: str) -> tuple[Any, str]:
  if "://" not in path:
    return LocalFileSystem(), str(
      pathlib.Path(path).expanduser()
    ) if path else ""
  try:
    return fsspec.core.url_to_fs(path)
  except (ImportError, ValueError, OSError) as error:
    raise UserError(
      f"{path} cannot be opened: {error}. fsspec opens it; some stores need a "
      "package of their own, such as gcsfs or s3fs."
    ) from error


def _is_data(path: str, suffixes: Sequence[str]) -> bool:
  name = posixpath.basename(path)
  kind = _SHARD.sub("", name.lower())
  return not name.startswith(".") and kind.endswith(tuple(suffixes))


def _matching(fs: Any, pattern: str) -> list[str]:
  return sorted(each for each in fs.glob(pattern) if not fs.isdir(each))


def _in_folder(fs: Any, root: str, suffixes: Sequence[str]) -> list[str]:
  entries = fs.ls(root, detail=True)
  files = sorted(
    each["name"] for each in entries if each["type"] != "directory"
  )
  state = posixpath.join(root, "state.json")
  if state in files:  # of `datasets`: other .arrow files there may be caches
    with fs.open(state) as source:
      listed = json.load(source).get("_data_files", [])
    return [posixpath.join(root, each["filename"]) for each in listed]
  if {posixpath.join(root, name) for name in DESCRIBED} <= {*files}:
    _check_split(root, files)
  return [each for each in files if _is_data(each, suffixes)]


def _check_split(root: str, files: Sequence[str]) -> None:
  """Of what TFDS wrote one split is read, and only as ArrayRecord."""
  names = [posixpath.basename(each) for each in files]
  parts = [_SHARD.sub("", name).rpartition(".") for name in names]
  splits = sorted({name for name, _, kind in parts if kind == "array_record"})
  if len(splits) > 1:
    raise UserError(
      f"{root} holds the splits {', '.join(splits)} of a TFDS data set. Set "
      f"data.path to one of them, such as {root}/{splits[0]}.array_record*."
    )
  if not splits:
    raise UserError(
      f"{root} is a TFDS data set that is not stored as ArrayRecord, the only "
      "kind that is read. Write it again with tfds.builder(NAME, "
      "file_format='array_record')."
    )


def _nothing(fs: Any, path: str, root: str, suffixes: Sequence[str]) -> str:
  if not fs.isdir(root):
    return (
      f"The pattern {path!r} matches no file whose name ends in "
      f"{told(suffixes)}."
    )
  entries = fs.ls(root, detail=True)
  folders = sorted(
    posixpath.basename(each["name"])
    for each in entries
    if each["type"] == "directory"
  )
  inside = f" It holds the folders {', '.join(folders)}." if folders else ""
  return (
    f"The data folder {path} holds no file whose name ends in "
    f"{told(suffixes)}; put the data files directly in it, or name another "
    f"path.{inside}"
  )
