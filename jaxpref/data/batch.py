"""From a packing to the arrays of a step."""

from collections.abc import Iterator
import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpref.data.packing import Packing, Piece, Row, Shape, round_up
from jaxpref.data.prepared import Prepared
from jaxpref.types import Comparisons, Lists, Slots, TextBatch


class Place(NamedTuple):
  """Where a response's tokens stand among the scored tokens of a step."""

  micro: int
  row: int
  start: int
  response: int
  length: int


def shared_lengths(data: Prepared) -> np.ndarray:
  """What each example's responses share: the free places, and its prompt."""
  return data.prompt_lengths + np.int32(data.prefix)


def needed_shape(data: Prepared, packing: Packing) -> Shape:
  """The sizes that a packing takes, a little rounded up."""
  listed = functools.partial(_listed, data)
  rows = [row for micro in packing for row in micro]
  ranks = itertools.zip_longest(
    *(sorted(_lengths(data, row).values(), reverse=True) for row in rows),
    fillvalue=0,
  )
  scored = (
    sum(int(data.response_lengths[j]) for p in row for j in p.responses)
    for row in rows
  )
  return Shape(
    micro_batches=len(packing),
    rows=len(packing[0]),
    tokens=round_up(max(sum(p.size for p in row) for row in rows), 16),
    sequences=tuple(round_up(max(rank), 4) for rank in ranks) or (8,),
    responses=round_up(max(scored), 8),
    slots=max(1, *(len(_slot_numbers(micro)) for micro in packing)),
    comparisons=max(1, *(len(_compared(data, m)) for m in packing)),
    lists=max(1, *map(len, map(listed, packing))),
    items=max([1, *(len(n) for m in packing for n in listed(m).values())]),
    prefix=data.prefix,
  )


def make_batch(
  data: Prepared,
  packing: Packing,
  shape: Shape,
  ref_token_logp: np.ndarray | None = None,
) -> TextBatch:
  """The arrays of a step; micro-batches are stacked on the first axis.

  Args:
    data: tokens and comparisons.
    packing: what goes where.
    shape: sizes that cover the packing.
    ref_token_logp: the reference's log-prob of every response token of
      `data`, in its order, in nats; None if it is not cached.
  """
  lead = (shape.micro_batches, shape.rows)
  batch = TextBatch(
    tokens=np.zeros((*lead, shape.tokens), np.int32),
    position=np.zeros((*lead, shape.tokens), np.int32),
    expand=tuple(
      np.zeros((*lead, *size), np.int32) for size in _length_classes(shape)
    ),
    collapse=np.zeros((*lead, shape.tokens), np.int32),
    source=np.zeros((*lead, shape.responses), np.int32),
    target=np.zeros((*lead, shape.responses), np.int32),
    slot=np.full((*lead, shape.responses), shape.slots, np.int32),
    ref_token_logp=(
      None
      if ref_token_logp is None
      else reference(data, packing, shape, ref_token_logp)
    ),
    last=np.zeros((shape.micro_batches, shape.slots), np.int32),
    slots=slots_of(data, packing, shape),
    comparisons=comparisons_of(data, packing, shape),
    lists=lists_of(data, packing, shape),
    prefix=shape.prefix,
  )
  for m, micro in enumerate(packing):
    slot_of = _slot_numbers(micro)
    for r, row in enumerate(micro):
      _fill_row(data, row, shape, slot_of, batch, (m, r))
  return batch


def batch_shapes(shape: Shape, *, cached: bool, axes: int = 0) -> TextBatch:
  """What `make_batch` makes, as a jax.ShapeDtypeStruct for each array.

  Args:
    shape: the sizes.
    cached: whether the batch carries log-probs of the reference.
    axes: on how many axes the data are rated, for a reward model of several.
  """
  micro = shape.micro_batches

  def array(kind: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((micro, *sizes), kind)

  tokens = (shape.rows, shape.tokens)
  scored = (shape.rows, shape.responses)
  return TextBatch(
    tokens=array(np.int32, *tokens),
    position=array(np.int32, *tokens),
    expand=tuple(
      array(np.int32, shape.rows, *size) for size in _length_classes(shape)
    ),
    collapse=array(np.int32, *tokens),
    source=array(np.int32, *scored),
    target=array(np.int32, *scored),
    slot=array(np.int32, *scored),
    ref_token_logp=array(np.float32, *scored) if cached else None,
    last=array(np.int32, shape.slots),
    **compared_shapes(shape, axes),
    prefix=shape.prefix,
  )


def compared_shapes(shape: Shape, axes: int = 0) -> dict[str, Any]:
  """The part of `batch_shapes` that batches of images have too."""

  def array(kind: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((shape.micro_batches, *sizes), kind)

  return {
    "slots": Slots(
      example_id=array(np.int32, shape.slots),
      valid=array(np.bool_, shape.slots),
      label=array(np.int32, shape.slots),
      mismatched=array(np.bool_, shape.slots),
      score=array(np.float32, shape.slots),
      ratings=array(np.float32, shape.slots, axes) if axes else None,
    ),
    "comparisons": Comparisons(
      better=array(np.int32, shape.comparisons),
      worse=array(np.int32, shape.comparisons),
      valid=array(np.bool_, shape.comparisons),
      weight=array(np.float32, shape.comparisons),
      preference=array(np.float32, shape.comparisons),
      preferences=(
        array(np.float32, shape.comparisons, axes) if axes else None
      ),
    ),
    "lists": Lists(
      slot=array(np.int32, shape.lists, shape.items),
      valid=array(np.bool_, shape.lists, shape.items),
    ),
  }


def places(data: Prepared, packing: Packing) -> Iterator[Place]:
  """Where each response stands in [micro-batches, rows, responses] arrays."""
  for m, micro in enumerate(packing):
    for r, row in enumerate(micro):
      start = 0
      for number in (j for piece in row for j in piece.responses):
        length = int(data.response_lengths[number])
        yield Place(m, r, start, number, length)
        start += length


def reference(
  data: Prepared, packing: Packing, shape: Shape, values: np.ndarray
) -> np.ndarray:
  """The values of all response tokens where a step has them; 0 in padding."""
  size = (shape.micro_batches, shape.rows, shape.responses)
  out = np.zeros(size, np.float32)
  for m, r, start, number, length in places(data, packing):
    first = data.first_token[number]
    out[m, r, start : start + length] = values[first : first + length]
  return out


def _fill_row(
  data: Prepared,
  row: Row,
  shape: Shape,
  slot_of: dict[int, int],
  batch: TextBatch,
  at: tuple[int, int],
) -> None:
  """Writes the pieces of a row into the arrays, in place."""
  seats = _seats(data, row, shape)
  end = scored = 0
  for piece in row:
    prompt = data.prompt(piece.example)
    head = data.prefix + len(prompt)
    shared = np.arange(end, end + head)
    end += head
    batch.tokens[at][shared[data.prefix :]] = prompt
    batch.position[at][shared] = np.arange(head)
    for number in piece.responses:
      response = data.response(number)
      own = np.arange(end, end + len(response))
      end += len(response)
      sequence = np.concatenate([shared, own])
      batch.tokens[at][own] = response
      batch.position[at][own] = head + np.arange(len(response))
      group, place, offset = seats[number]
      batch.expand[group][at][place, : len(sequence)] = sequence
      # Every copy of a prompt comes out the same; the last one serves.
      batch.collapse[at][sequence] = offset + np.arange(len(sequence))
      here = slice(scored, scored + len(response))
      scored += len(response)
      batch.source[at][here] = sequence[head - 1 : -1]
      batch.target[at][here] = response
      batch.slot[at][here] = slot_of[number]
      last = at[1] * shape.tokens + own[-1]
      batch.last[at[0], slot_of[number]] = last


def _length_classes(shape: Shape) -> list[tuple[int, int]]:
  """(sequences, length) of each array of `expand`, longest first."""
  return [
    (len(list(same)), length)
    for length, same in itertools.groupby(shape.sequences)
  ]


def _seats(
  data: Prepared, row: Row, shape: Shape
) -> dict[int, tuple[int, int, int]]:
  """Response -> (class, place in it, offset of its first token in all)."""
  seats = []
  offset = 0
  for group, (count, length) in enumerate(_length_classes(shape)):
    for place in range(count):
      seats.append((group, place, offset))
      offset += length
  lengths = _lengths(data, row)
  longest_first = sorted(lengths, key=lambda number: -lengths[number])
  # The k-th longest sequence of a row always fits the k-th longest seat.
  return dict(zip(longest_first, seats, strict=False))


def _lengths(data: Prepared, row: Row) -> dict[int, int]:
  """Response -> tokens of its sequence, all that it shares included."""
  shared = shared_lengths(data)
  return {
    j: int(shared[piece.example] + data.response_lengths[j])
    for piece in row
    for j in piece.responses
  }


def _pieces(micro: list[Row]) -> Iterator[Piece]:
  return itertools.chain.from_iterable(micro)


def _slot_numbers(micro: list[Row]) -> dict[int, int]:
  """Response -> slot of the micro-batch."""
  numbers = (j for piece in _pieces(micro) for j in piece.responses)
  return {number: slot for slot, number in enumerate(numbers)}


def _compared(data: Prepared, micro: list[Row]) -> list[int]:
  """The comparisons whose two responses are both there."""
  there = _slot_numbers(micro)
  return [
    c
    for i in sorted({piece.example for piece in _pieces(micro)})
    for c in range(data.first_comparison[i], data.first_comparison[i + 1])
    if data.better[c] in there and data.worse[c] in there
  ]


def _listed(data: Prepared, micro: list[Row]) -> dict[int, list[int]]:
  """Example -> its scored responses, where there are several."""
  found: dict[int, list[int]] = {}
  for piece in _pieces(micro):
    scored = [j for j in piece.responses if data.score[j] == data.score[j]]
    found.setdefault(piece.example, []).extend(scored)
  return {i: numbers for i, numbers in found.items() if len(numbers) > 1}


def slots_of(data: Prepared, packing: Packing, shape: Shape) -> Slots:
  """What is known of each response."""
  size = (shape.micro_batches, shape.slots)
  example_id, label = np.zeros(size, np.int32), np.full(size, -1, np.int32)
  valid, mismatched = np.zeros(size, bool), np.zeros(size, bool)
  score = np.zeros(size, np.float32)
  ratings = _unrated(size, data.ratings)
  for m, micro in enumerate(packing):
    numbers = list(_slot_numbers(micro))
    here = m, slice(len(numbers))
    example_id[here] = [p.example for p in _pieces(micro) for _ in p.responses]
    label[here] = data.label[numbers]
    mismatched[here] = data.mismatched[numbers]
    score[here] = np.nan_to_num(data.score[numbers])
    if ratings is not None:
      ratings[here] = data.ratings[numbers]
    valid[here] = True
  return Slots(
    example_id=example_id,
    valid=valid,
    label=label,
    mismatched=mismatched,
    score=score,
    ratings=ratings,
  )


def _unrated(size: tuple[int, int], like: np.ndarray) -> np.ndarray | None:
  """NaN on as many axes as `like` has; None where it has none."""
  axes = like.shape[1]
  return np.full((*size, axes), np.nan, np.float32) if axes else None


def lists_of(data: Prepared, packing: Packing, shape: Shape) -> Lists:
  """The scored responses of each prompt, where there are several."""
  size = (shape.micro_batches, shape.lists, shape.items)
  slot, valid = np.zeros(size, np.int32), np.zeros(size, bool)
  for m, micro in enumerate(packing):
    slot_of = _slot_numbers(micro)
    for i, numbers in enumerate(_listed(data, micro).values()):
      here = m, i, slice(len(numbers))
      slot[here] = [slot_of[number] for number in numbers]
      valid[here] = True
  return Lists(slot=slot, valid=valid)


def comparisons_of(
  data: Prepared, packing: Packing, shape: Shape
) -> Comparisons:
  """The comparisons of which both responses are in the micro-batch."""
  size = (shape.micro_batches, shape.comparisons)
  better, worse = np.zeros(size, np.int32), np.zeros(size, np.int32)
  valid = np.zeros(size, bool)
  weight, preference = np.ones(size, np.float32), np.ones(size, np.float32)
  preferences = _unrated(size, data.preferences)
  for m, micro in enumerate(packing):
    slot_of = _slot_numbers(micro)
    here = _compared(data, micro)
    better[m, : len(here)] = [slot_of[int(data.better[c])] for c in here]
    worse[m, : len(here)] = [slot_of[int(data.worse[c])] for c in here]
    weight[m, : len(here)] = data.weight[here]
    preference[m, : len(here)] = data.preference[here]
    if preferences is not None:
      preferences[m, : len(here)] = data.preferences[here]
    valid[m, : len(here)] = True
  return Comparisons(
    better=better,
    worse=worse,
    valid=valid,
    weight=weight,
    preference=preference,
    preferences=preferences,
  )
