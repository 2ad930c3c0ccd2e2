"""safetensors files written a tensor at a time.

The library's own writer takes all tensors of a file at once, which for a UNet
is a second copy of the model. The format is a JSON header, of which each
tensor's place follows from its shape alone, and then the bytes in a row.
"""

from collections.abc import Iterator, Mapping
import json
import math
import pathlib

import numpy as np

_DTYPES = {
  "float16": "F16",
  "bfloat16": "BF16",
  "float32": "F32",
  "float64": "F64",
}


def write_safetensors(
  path: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtype: np.dtype,
  tensors: Iterator[tuple[str, np.ndarray]],
) -> None:
  """Writes the next `len(shapes)` of the tensors.

  Args:
    path: the file.
    shapes: of each tensor, in the order in which they come.
    dtype: of all of them.
    tensors: names and arrays; more may follow, for other files.
  """
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, shape in shapes.items():
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": _DTYPES[dtype.name],
      "shape": list(shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # what follows is aligned
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    # zip stops at the end of the shapes before it takes another tensor.
    for expected, (name, tensor) in zip(shapes, tensors):
      assert (name, tensor.shape) == (expected, shapes[expected]), name
      assert tensor.dtype == dtype, (name, tensor.dtype)
      file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
