"""Arrays in one safetensors file: one is streamed, all are memory-mapped.

safetensors' own writer wants every array in memory, and its NumPy reader
copies; tokens may be many gigabytes.
"""

import array
from collections.abc import Iterable, Mapping
import json
import math
import pathlib
import tempfile
from typing import Any

import numpy as np

from jaxpref.errors import UserError

_HEADER_BYTES = 4096  # padded with spaces, since it is known only at the end
_RECENT = 1 << 14  # numbers that wait in memory
_NAMES = {"I32": np.dtype("<i4"), "F32": np.dtype("<f4")}


class ArrayWriter:
  """Writes the array `stream` piece by piece, and then others."""

  def __init__(self, file: pathlib.Path, stream: str):
    self._stream, self._count = stream, 0
    self._entries: dict[str, dict[str, Any]] = {}
    self._end = 0  # of what the entries name
    self._out = open(file, "wb")  # noqa: SIM115 (closed by `close`)
    self._out.write(b" " * _HEADER_BYTES)

  def append(self, values: Any) -> bytes:
    """Adds int32 values to the stream, and returns their bytes."""
    written = np.asarray(values, _NAMES["I32"]).tobytes()
    self._out.write(written)
    self._count += len(written) // 4
    return written

  def add(self, name: str, values: np.ndarray) -> None:
    """Adds an int32 or float32 array, after all of the stream."""
    kind = next(k for k, dtype in _NAMES.items() if dtype == values.dtype)
    if not self._entries:
      self._entries[self._stream] = self._entry("I32", [self._count])
    self._entries[name] = self._entry(kind, list(values.shape))
    self._out.write(values.tobytes())

  def close(self) -> None:
    """Writes the header, and closes the file."""
    text = json.dumps(self._entries).encode().ljust(_HEADER_BYTES - 8)
    assert len(text) == _HEADER_BYTES - 8
    self._out.seek(0)
    self._out.write(len(text).to_bytes(8, "little") + text)
    self.abandon()

  def abandon(self) -> None:
    """Closes the file as it is."""
    self._out.close()

  def _entry(self, kind: str, shape: list[int]) -> dict[str, Any]:
    """Of the array that comes next."""
    start, size = self._end, 4 * math.prod(shape)
    self._end = start + size
    return {"dtype": kind, "shape": shape, "data_offsets": [start, self._end]}


class Spool:
  """Numbers that are collected on disk, so that memory does not grow."""

  def __init__(self, folder: pathlib.Path, kind: type[np.int32 | np.float32]):
    self._out = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (by itself)
    self._kind = kind
    code = "i" if kind is np.int32 else "f"
    self._recent: array.array[Any] = array.array(code)
    self._written = 0

  def __len__(self) -> int:
    return self._written + len(self._recent)

  def extend(self, values: Iterable[Any]) -> None:
    self._recent.extend(values)
    if len(self._recent) >= _RECENT:
      self._flush()

  def read(self) -> np.ndarray:
    """All of them, int32 or float32."""
    self._flush()
    self._out.seek(0)
    return np.frombuffer(self._out.read(), self._kind)

  def close(self) -> None:
    """Forgets them."""
    self._out.close()

  def _flush(self) -> None:
    self._out.seek(0, 2)
    self._recent.tofile(self._out)
    self._written += len(self._recent)
    del self._recent[:]


def read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The file's arrays, memory-mapped and read-only.

  Raises UserError where the file is shorter than its header says.
  """
  with open(file, "rb") as lines:
    size = int.from_bytes(lines.read(8), "little")
    try:
      header = json.loads(lines.read(size))
    except ValueError as error:
      raise UserError(f"{file} is damaged: {error}. Delete it.") from error
  data = np.asarray(np.memmap(file, np.uint8, "r"))[8 + size :]
  if max(entry["data_offsets"][1] for entry in header.values()) != data.size:
    raise UserError(f"{file} is damaged: it was cut off. Delete it.")

  def one(entry: Mapping[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    return data[start:end].view(_NAMES[entry["dtype"]]).reshape(entry["shape"])

  return {name: one(entry) for name, entry in header.items()}
