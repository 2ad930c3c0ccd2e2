"""What accelerators can do, by the names that jax gives them.

Peaks are the makers' figures for dense products in bfloat16; nothing reaches
them. Sources: Google's pages of TPU v4, v5e, v5p and v6e, NVIDIA's data sheets
of A100, H100 and H200.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Chip(NamedTuple):
  """One device, as jax counts them."""

  kinds: tuple[str, ...]  # `device_kind`, or how it begins
  peak_flops: float  # a second, bfloat16
  memory_bytes: float
  memory_bandwidth: float  # bytes a second
  link_bandwidth: float  # bytes a second that it sends to the others


_GIB = 2.0**30
# The memory of a TPU is what the compiler grants a program, read off its error
# where one takes more (libtpu 0.0.52); that of a GPU is the data sheet's.
_CHIPS = (
  Chip(("TPU v4",), 275e12, 32 * _GIB, 1228e9, 300e9),
  Chip(("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * _GIB, 819e9, 200e9),
  Chip(("TPU v5p", "TPU v5"), 459e12, 95.73 * _GIB, 2765e9, 600e9),
  Chip(("TPU v6 lite", "TPU v6e"), 918e12, 31.24 * _GIB, 1640e9, 400e9),
  Chip(("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9),
  Chip(("NVIDIA H100 PCIe",), 756e12, 80e9, 2000e9, 300e9),
  Chip(("NVIDIA H100",), 989e12, 80e9, 3350e9, 450e9),
  Chip(("NVIDIA A100-SXM4-40GB",), 312e12, 40e9, 1555e9, 300e9),
  Chip(("NVIDIA A100",), 312e12, 80e9, 2039e9, 300e9),
)


def find_chip(device_kind: str) -> Chip | None:
  """The chip of a device's `device_kind`; None for one that is not known."""
  return _longest(device_kind, _CHIPS)


def _longest(name: str, chips: Iterable[Chip]) -> Chip | None:
  """The chip whose name is the longest beginning of `name`."""
  fits = [
    (len(kind), chip)
    for chip in chips
    for kind in chip.kinds
    if name == kind or name.startswith((f"{kind} ", f"{kind}-"))
  ]
  return max(fits)[1] if fits else None
