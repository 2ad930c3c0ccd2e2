"""Arrays in one safetensors file: one is streamed, all are memory-mapped.

safetensors' own writer wants every array in memory, and its NumPy reader
copies; tokens may be many gigabytes.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import numpy as np

from jaxpref.errors import UserError

_HEADER_BYTES = 4096  # padded with spaces, since it is known only at the end
_NAMES = {"I32": np.dtype("<i4"), "F32": np.dtype("<f4")}


class ArrayWriter:
  """Writes the array `stream` piece by piece, and others when it closes."""

  def __init__(self, file: pathlib.Path, stream: str):
    self._stream, self._count = stream, 0
    self._out = open(file, "wb")  # noqa: SIM115 (closed by `close`)
    self._out.write(b" " * _HEADER_BYTES)

  def append(self, values: Any) -> bytes:
    """Adds int32 values to the stream, and returns their bytes."""
    written = np.asarray(values, _NAMES["I32"]).tobytes()
    self._out.write(written)
    self._count += len(written) // 4
    return written

  def close(self, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes int32 and float32 arrays and the header, and closes the file."""
    header, end = {}, 4 * self._count
    header[self._stream] = _entry("I32", [self._count], 0, end)
    for name, array in arrays.items():
      kind = next(k for k, dtype in _NAMES.items() if dtype == array.dtype)
      start, end = end, end + array.nbytes
      header[name] = _entry(kind, list(array.shape), start, end)
      self._out.write(array.tobytes())
    text = json.dumps(header).encode().ljust(_HEADER_BYTES - 8)
    assert len(text) == _HEADER_BYTES - 8
    self._out.seek(0)
    self._out.write(len(text).to_bytes(8, "little") + text)
    self.abandon()

  def abandon(self) -> None:
    """Closes the file as it is."""
    self._out.close()


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


def _entry(kind: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
  return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
