"""`tf.train.Example` without TensorFlow: lists of values by their names.

Three messages of protocol buffers, of which only what TFDS writes is read.
Reference: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator

import numpy as np

Example = dict[str, list[bytes] | list[float] | list[int]]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_BYTES, _FLOATS, _INTS = 1, 2, 3  # of a feature: which list it holds


def parse_example(data: bytes) -> Example:
  """Raises ValueError where the bytes are no such message."""
  found: Example = {}
  for features in _parts(data, 1):
    for entry in _parts(features, 1):
      names, values = list(_parts(entry, 1)), list(_parts(entry, 2))
      name = names[-1].decode() if names else ""
      found[name] = _values(values[-1]) if values else []
  return found


def _values(feature: bytes) -> list[bytes] | list[float] | list[int]:
  for number, listed in _fields(feature):
    if not isinstance(listed, bytes):
      raise ValueError("a feature that is no list")
    if number == _BYTES:
      return list(_parts(listed, 1))
    if number == _FLOATS:
      # Packed or one by one, which are the same bytes.
      packed = b"".join(_parts(listed, 1))
      return np.frombuffer(packed, "<f4").tolist()
    if number == _INTS:
      return list(_ints(listed))
  return []


def _ints(listed: bytes) -> Iterator[int]:
  for number, value in _fields(listed):
    if number != 1:
      continue
    if isinstance(value, int):
      yield _signed(value)
      continue
    place = 0
    while place < len(value):
      each, place = _varint(value, place)
      yield _signed(each)


def _parts(message: bytes, wanted: int) -> Iterator[bytes]:
  """The bytes of each field of that number."""
  for number, value in _fields(message):
    if number == wanted:
      if not isinstance(value, bytes):
        raise ValueError(f"a number where field {wanted} has bytes")
      yield value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
  place = 0
  while place < len(message):
    tag, place = _varint(message, place)
    number, kind = tag >> 3, tag & 7
    if kind == _VARINT:
      value, place = _varint(message, place)
      yield number, value
      continue
    if kind == _LENGTH:
      size, place = _varint(message, place)
    elif kind in (_FIXED32, _FIXED64):
      size = 4 if kind == _FIXED32 else 8
    else:
      raise ValueError(f"a field of the unknown kind {kind}")
    if place + size > len(message):
      raise ValueError(f"field {number} is cut off")
    yield number, message[place : place + size]
    place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
  """The number that begins at `place`, and where it ends."""
  value = 0
  for shift in range(0, 70, 7):
    if place >= len(message):
      break
    byte = message[place]
    value, place = value | (byte & 0x7F) << shift, place + 1
    if byte < 0x80:
      return value & (2**64 - 1), place
  raise ValueError("a number without an end")


def _signed(value: int) -> int:
  return value - 2**64 if value >= 2**63 else value
