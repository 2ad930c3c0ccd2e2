"""Rows of a folder that TFDS wrote as ArrayRecord, without TFDS.

TFDS itself would decode the images of a list, and import what its features.json
names. That file says what each record holds: texts, encoded images, numbers,
lists of them, and objects {…} of all these. Columns of other kinds (videos,
tensors of two and more axes, lists of lists …) are left out.
"""

from collections.abc import Callable
import json
import pathlib
from typing import Any

from jaxpref.data.examples import Example, parse_example

DESCRIBED = ("features.json", "dataset_info.json")
"""What is in such a folder, beside its records."""

_Read = Callable[[Example], Any]


def row_reader(folder: str) -> Callable[[bytes], dict[str, Any]] | None:
  """Makes a row of a record; None where TFDS did not write the folder.

  Raises ValueError for a description that cannot be read; so does the
  function for a record that is not as described.
  """
  files = [pathlib.Path(folder) / name for name in DESCRIBED]
  if not all(file.is_file() for file in files):
    return None
  try:
    told = json.loads(files[0].read_text(encoding="utf-8"))
    read = _object(told["featuresDict"]["features"], "")
  except (LookupError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(
      f"{DESCRIBED[0]} does not list features as TFDS does today: {error!r}"
    ) from error
  return lambda record: read(parse_example(record))


def _object(features: dict[str, Any], path: str) -> _Read:
  columns = {
    name: read
    for name, told in features.items()
    if (read := _column(told, path + name))
  }
  return lambda example: {name: columns[name](example) for name in columns}


def _column(told: dict[str, Any], path: str) -> _Read | None:
  if "featuresDict" in told:
    return _object(told["featuresDict"]["features"], f"{path}/")
  if "sequence" in told:
    inner = told["sequence"]["feature"]
    if "featuresDict" in inner:
      return _objects(inner["featuresDict"]["features"], f"{path}/")
    return _list(inner, path)
  if _axes(told) == 1:
    return _list(told, path, axes=1)
  return _one(told, path)


def _one(told: dict[str, Any], path: str) -> _Read | None:
  if not (convert := _converter(told)):
    return None

  def read(example: Example) -> Any:
    values = example.get(path, [])
    if len(values) != 1:
      raise ValueError(f"{path} has {len(values)} values, and must have one")
    return convert(values[0])

  return read


def _list(told: dict[str, Any], path: str, axes: int = 0) -> _Read | None:
  if not (convert := _converter(told, axes)):
    return None
  return lambda example: [convert(each) for each in example.get(path, [])]


def _objects(features: dict[str, Any], path: str) -> _Read:
  """A list of objects, which is written as a list of each of their values."""
  lists = {
    name: each
    for name, told in features.items()
    if (each := _list(told, path + name))
  }

  def read(example: Example) -> list[dict[str, Any]]:
    found = [lists[name](example) for name in lists]
    if len({len(each) for each in found}) > 1:
      raise ValueError(f"the lists of {path} differ in length")
    return [dict(zip(lists, values)) for values in zip(*found)]

  return read


def _axes(told: dict[str, Any]) -> int:
  return len(told.get("tensor", {}).get("shape", {}).get("dimensions", []))


def _converter(
  told: dict[str, Any], axes: int = 0
) -> Callable[[Any], Any] | None:
  """Of a value as an Example holds it; None for a kind that is left out."""
  if "text" in told:
    return _checked(bytes, bytes.decode)
  if "image" in told:
    return _checked(bytes, bytes)
  if "classLabel" in told:
    return _checked(int, int)
  tensor = told.get("tensor")
  if not tensor or _axes(told) != axes:
    return None
  if tensor.get("encoding", "none").lower() != "none":
    return None
  kind = tensor["dtype"]
  if kind == "bool":
    return _checked(int, bool)
  if kind.startswith(("int", "uint")):
    return _checked(int, int)
  if kind.startswith(("float", "bfloat")):
    return _checked(float, float)
  return _checked(bytes, _text) if kind in ("string", "object") else None


def _checked(kind: type, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
  def checked(value: Any) -> Any:
    if not isinstance(value, kind):
      raise ValueError(
        f"found {type(value).__name__} where {kind.__name__} is told"
      )
    return convert(value)

  return checked


def _text(value: bytes) -> str | bytes:
  """Such a tensor may hold an encoded image, none of which is UTF-8."""
  try:
    return value.decode()
  except UnicodeDecodeError:
    return value
