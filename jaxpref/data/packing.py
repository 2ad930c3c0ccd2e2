"""Packed trees: which row of which micro-batch holds which responses.

Pure integer arithmetic on lengths; the arrays are made in `batch.py`.
"""

import collections
from collections.abc import Sequence
import dataclasses
import itertools
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
  """A prompt and some of its responses, which share one row."""

  example: int
  responses: tuple[int, ...]
  size: int  # tokens of the row it takes


Row = list[Piece]
Packing = list[list[Row]]  # [micro-batch][row] -> pieces


@dataclasses.dataclass(frozen=True)
class Shape:
  """The static sizes of a step's arrays."""

  micro_batches: int
  rows: int  # of one micro-batch, over all devices
  tokens: int  # of a row
  # What the longest, the second longest ... sequence of any row may take.
  sequences: tuple[int, ...]
  responses: int  # response tokens of a row
  slots: int  # of a micro-batch
  comparisons: int  # of a micro-batch
  lists: int = 1  # of a micro-batch
  items: int = 1  # of a list
  prefix: int = 0  # places before each prompt, for virtual tokens

  def join(self, other: "Shape") -> "Shape":
    """The smallest shape that covers both."""
    both = itertools.zip_longest(self.sequences, other.sequences, fillvalue=0)
    sizes = {
      field.name: max(getattr(self, field.name), getattr(other, field.name))
      for field in dataclasses.fields(self)
      if field.name != "sequences"
    }
    return Shape(sequences=tuple(max(pair) for pair in both), **sizes)

  def covers(self, other: "Shape") -> bool:
    """Whether every batch of shape `other` fits into this one."""
    return self == self.join(other)


class Waste(NamedTuple):
  """Tokens of a step's rows, and those of them that teach nothing."""

  tokens: int  # of all rows
  padding: int  # in rows that hold something
  idle_rows: int  # in rows that hold nothing
  repeated_prompts: int  # of prompts, beyond one copy of each


def split_example(
  example: int,
  prompt: int,
  responses: Sequence[tuple[int, int]],
  *,
  row_length: int,
  share_prompts: bool,
) -> list[Piece]:
  """The pieces of an example: one, unless it is too long for a row.

  Args:
    example: its number.
    prompt: tokens of its prompt, virtual ones included.
    responses: (number, tokens) of each response.
    row_length: the most tokens a piece may take.
    share_prompts: store the prompt once a piece; else once a response.
  """
  pieces: list[Piece] = []
  for number, length in responses:
    last = pieces[-1] if pieces and share_prompts else None
    if last and last.size + length <= row_length:
      joined = (*last.responses, number)
      pieces[-1] = Piece(example, joined, last.size + length)
    else:
      pieces.append(Piece(example, (number,), prompt + length))
  return pieces


def pack(
  examples: Sequence[Sequence[Piece]],
  *,
  micro_batches: int,
  rows: int,
  row_length: int,
) -> Packing | None:
  """Spreads examples so that the fullest row is as empty as it can be.

  Longest first, each onto the emptiest rows; all pieces of an example go into
  one micro-batch, where its comparisons are. Returns None if they don't fit.
  """
  loads = np.zeros((micro_batches, rows), np.int64)
  packing: Packing = [[[] for _ in range(rows)] for _ in range(micro_batches)]
  # A stable sort: the same examples are packed the same way everywhere.
  order = sorted(examples, key=lambda pieces: -sum(p.size for p in pieces))
  for pieces in order:
    for micro in np.argsort(loads.min(axis=1), kind="stable"):
      trial = loads[micro].copy()
      placed = []
      for piece in sorted(pieces, key=lambda piece: -piece.size):
        row = int(np.argmin(trial))
        trial[row] += piece.size
        placed.append((row, piece))
      if trial.max() <= row_length:
        loads[micro] = trial
        for row, piece in placed:
          packing[micro][row].append(piece)
        break
    else:
      return None
  return packing


def pack_fewest(
  examples: Sequence[Sequence[Piece]],
  *,
  rows: int,
  row_length: int,
  at_least: int = 1,
) -> Packing:
  """Packs into the fewest micro-batches, but `at_least` so many.

  Raises ValueError if an example fits no micro-batch.
  """
  total = sum(piece.size for pieces in examples for piece in pieces)
  count = max(at_least, -(-total // (rows * row_length)))
  # With a micro-batch an example, each finds one that is empty.
  for enough in range(count, max(count, len(examples)) + 1):
    packing = pack(
      examples, micro_batches=enough, rows=rows, row_length=row_length
    )
    if packing is not None:
      return packing
  raise ValueError(f"an example does not fit {rows} rows of {row_length}")


def measure_waste(
  packing: Packing, shape: Shape, shared_lengths: Sequence[int] | np.ndarray
) -> Waste:
  """What a packing wastes of the rows of a shape that covers it."""
  loads = [sum(p.size for p in row) for micro in packing for row in micro]
  used = sum(load > 0 for load in loads)
  copies = collections.Counter(
    piece.example for micro in packing for row in micro for piece in row
  )
  rows = shape.micro_batches * shape.rows
  return Waste(
    tokens=rows * shape.tokens,
    padding=used * shape.tokens - sum(loads),
    idle_rows=(rows - used) * shape.tokens,
    repeated_prompts=sum(
      (count - 1) * int(shared_lengths[example])
      for example, count in copies.items()
    ),
  )


def merge_lengths(lengths: Sequence[int], classes: int) -> tuple[int, ...]:
  """Raises lengths, longest first, so that at most `classes` differ.

  Each different length is attention compiled anew. The sum of squares, which
  is what attention costs, grows as little as it can.
  """
  groups = [(value, len(list(g))) for value, g in itertools.groupby(lengths)]

  def raised(start: int, stop: int) -> tuple[int, ...]:
    """Groups start ... stop - 1, all as long as the first."""
    return (groups[start][0],) * sum(size for _, size in groups[start:stop])

  def cost(merged: tuple[int, ...]) -> int:
    return sum(length * length for length in merged)

  # best[n]: of the first n groups, with one class more in each round.
  best = [(), *(raised(0, stop) for stop in range(1, len(groups) + 1))]
  for _ in range(1, classes):
    best = [()] + [
      min((best[k] + raised(k, stop) for k in range(stop)), key=cost)
      for stop in range(1, len(best))
    ]
  return best[-1]


def round_up(size: int, steps: int) -> int:
  """`size`, or a little more, so that nearby sizes share a compiled program.

  Rounds to `steps` sizes an octave, each a multiple of 8.
  """
  octave = 2 ** max(0, (max(size, 1) - 1).bit_length() - 1)
  unit = max(8, octave // steps)
  return -(-max(size, 1) // unit) * unit
