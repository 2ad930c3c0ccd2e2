"""Step batches as a pure function of (seed, step, lengths).

Which examples a step holds and how they are packed follow from the seed, the
step and the lengths alone, so the state of the data is one integer, and a
resumed run goes on with the very next example.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools

import numpy as np

from jaxpref.data import batch
from jaxpref.data.loader import Loader
from jaxpref.data.order import Order, one_source
from jaxpref.data.packing import (
  Packing,
  Piece,
  Shape,
  Waste,
  measure_waste,
  merge_lengths,
  pack,
  pack_fewest,
  split_example,
)
from jaxpref.data.prepared import Prepared
from jaxpref.errors import UserError
from jaxpref.types import TextBatch

_LENGTH_CLASSES = 4  # more fit tighter, and take longer to compile
_PLANNED_STEPS = 512  # looked at before the first, to choose one shape


class Calendar:
  """Which examples each step of a run holds."""

  def __init__(
    self, total: int, batch_size: int, order: Order | None, num_steps: int
  ):
    """
    Args:
      total: how many examples there are.
      batch_size: examples a step.
      order: the examples of an epoch; None = as they stand.
      num_steps: how many steps the run has; 0 = one epoch.
    """
    self.order = order or one_source(total, seed=None)
    self.batch_size = batch_size
    self.steps_per_epoch = self.order.num_batches(batch_size)
    self.num_steps = num_steps or self.steps_per_epoch
    self._batches = functools.lru_cache(maxsize=2)(self.order.batches)

  def __len__(self) -> int:
    return self.num_steps

  @property
  def see_all(self) -> bool:
    """Whether every example is seen at least once."""
    return self.num_steps >= self.steps_per_epoch

  def examples(self, step: int) -> np.ndarray:
    """The numbers of the examples of a step; fewer in a bucket's last one."""
    epoch, step = divmod(step, self.steps_per_epoch)
    return self._batches(epoch, self.batch_size)[step]

  def seen(self, steps: int) -> dict[str, int]:
    """Examples of each source in the first `steps`, where there are several."""
    if len(self.order.draws) == 1:
      return {}
    epochs, rest = divmod(steps, self.steps_per_epoch)
    begun = self.order.counts(0, rest * self.batch_size)
    whole = self.order.draws
    return {name: epochs * whole[name] + begun[name] for name in whole}


class Steps(Calendar):
  """The batches of a run, by step number (from 0)."""

  def __init__(
    self,
    data: Prepared,
    *,
    batch_size: int,
    rows: int,
    row_length: int,
    share_prompts: bool = True,
    shuffle: bool = False,
    seed: int = 0,
    kept: np.ndarray | None = None,
    num_steps: int = 0,
    order: Order | None = None,
    buckets: int = 1,
    prefix: int = 0,
  ):
    """Looks ahead at the lengths and settles the shapes of the arrays.

    Args:
      data: the tokenised examples.
      batch_size: prompts a step.
      rows: rows of one micro-batch, over all devices.
      row_length: the most tokens of a row.
      share_prompts: store each prompt once, not once a response.
      shuffle: a new order each epoch; else the order of the file.
      seed: of the order.
      kept: which responses are computed; None = all.
      num_steps: how many steps the run has; 0 = one epoch.
      order: the examples of an epoch, in place of `shuffle` and `seed`.
      buckets: the most shapes that the planned steps are padded to.
      prefix: places kept free before each prompt, for virtual tokens.

    Raises UserError if rows are too short.
    """
    order = order or one_source(len(data), seed=seed if shuffle else None)
    super().__init__(len(data), batch_size, order, num_steps)
    self.data = dataclasses.replace(data, prefix=prefix) if prefix else data
    self.rows = rows
    self.row_length, self.share_prompts = row_length, share_prompts
    self.ref_token_logp: np.ndarray | None = None  # see `batch.make_batch`
    # What is done to a step's batch when it is asked for, and not before.
    self.finish: Callable[[int, TextBatch], TextBatch] | None = None
    self.kept = np.ones(len(data.label), bool) if kept is None else kept
    self._check_rows()
    self.shapes = self._plan(min(self.num_steps, _PLANNED_STEPS), buckets)
    self.packing = functools.lru_cache(maxsize=32)(self._packing)

  @property
  def shape(self) -> Shape:
    """The largest of the shapes, which steps that fit no other are given."""
    return self.shapes[-1]

  def __getitem__(self, step: int) -> TextBatch:
    """The arrays of a step, on the host."""
    packing, shape = self.packing(step)
    return batch.make_batch(self.data, packing, shape, self.ref_token_logp)

  def reference(self, step: int, values: np.ndarray) -> np.ndarray:
    """`values`, which are as `ref_token_logp`, where a step has them."""
    return batch.reference(self.data, *self.packing(step), values)

  def lengths(self, step: int) -> list[tuple[int, tuple[int, ...]]]:
    """Tokens of each prompt of a step, and of the responses that it keeps."""
    found = []
    for i in self.examples(step):
      here = slice(*self.data.first_response[i : i + 2])
      kept = self.data.response_lengths[here][self.kept[here]]
      found.append((int(self.data.prompt_lengths[i]), tuple(map(int, kept))))
    return found

  def amounts(self, batch: TextBatch) -> dict[str, int]:
    """How much a step holds, by what is counted a second."""
    return {
      "pairs": int(np.sum(batch.comparisons.valid)),
      "tokens": int(np.sum(batch.slot < batch.slots.valid.shape[-1])),
    }

  def waste(self, step: int) -> Waste:
    """What a step computes and does not need."""
    return measure_waste(*self.packing(step), batch.shared_lengths(self.data))

  def _packing(self, step: int) -> tuple[Packing, Shape]:
    """What goes where in a step, and the shape of its arrays."""
    for shape in self.shapes:
      packing = self._pack(step, shape.micro_batches)
      need = batch.needed_shape(self.data, packing)
      if shape.covers(need):
        return packing, shape
    # A step that the plan did not foresee gets a shape of its own.
    return packing, _few_classes(self.shape.join(need))

  def loader(self, numbers: Sequence[int], threads: int = 2) -> Loader:
    """Batches of the steps with these numbers, made ahead by threads."""
    return Loader(
      self.__getitem__, numbers, finish=self.finish, threads=threads
    )

  def _check_rows(self) -> None:
    """Every example must fit into the rows of one micro-batch."""
    prompts = np.repeat(
      batch.shared_lengths(self.data), np.diff(self.data.first_response)
    )
    sequences = prompts + self.data.response_lengths
    longest = int(sequences.max())
    if longest > self.row_length:
      virtual = self.data.prefix
      raise UserError(
        f"config.data.row_length is {self.row_length}, and the longest prompt "
        f"with one response has {longest} tokens"
        f"{f', {virtual} of them virtual' if virtual else ''}. Set it to at "
        "least that, or lower config.data.max_length."
      )
    # Only examples that may be too long for one row are looked at.
    sizes = np.add.reduceat(sequences, self.data.first_response[:-1])
    for example in np.flatnonzero(sizes > self.row_length):
      pieces = self._pieces(int(example))
      if not pack(
        [pieces], micro_batches=1, rows=self.rows, row_length=self.row_length
      ):
        raise UserError(
          f"{self.data.ids[int(example)]} has {len(pieces)} parts of up to "
          f"{max(piece.size for piece in pieces)} tokens, which do not fit "
          f"into the {self.rows} rows of {self.row_length} tokens of one "
          "micro-batch. Raise config.data.row_length or "
          "config.data.rows_per_device."
        )

  def _plan(self, count: int, buckets: int) -> list[Shape]:
    """Shapes for the first `count` steps, by the tokens that they compute."""
    needs = [self._need(step) for step in range(count)]
    sizes = [need.micro_batches * need.tokens for need in needs]
    order = np.argsort([-size for size in sizes], kind="stable")
    limits = merge_lengths([sizes[step] for step in order], buckets)
    shapes: list[Shape] = []
    for _, group in itertools.groupby(
      zip(order, limits, strict=True), key=lambda pair: pair[1]
    ):
      members = [int(step) for step, _ in group]
      fewest = max(needs[step].micro_batches for step in members)
      shape = functools.reduce(
        Shape.join,
        (
          needs[step]  # packed so already
          if needs[step].micro_batches == fewest
          else self._need(step, fewest)
          for step in members
        ),
      )
      shapes.insert(0, _few_classes(shape))
    return shapes

  def _need(self, step: int, at_least: int = 1) -> Shape:
    return batch.needed_shape(self.data, self._pack(step, at_least))

  def _pack(self, step: int, at_least: int = 1) -> Packing:
    return pack_fewest(
      [self._pieces(int(i)) for i in self.examples(step)],
      rows=self.rows,
      row_length=self.row_length,
      at_least=at_least,
    )

  def _pieces(self, example: int) -> list[Piece]:
    first, last = self.data.first_response[example : example + 2]
    return split_example(
      example,
      int(batch.shared_lengths(self.data)[example]),
      [
        (j, int(self.data.response_lengths[j]))
        for j in range(first, last)
        if self.kept[j]
      ],
      row_length=self.row_length,
      share_prompts=self.share_prompts,
    )


def _few_classes(shape: Shape) -> Shape:
  merged = merge_lengths(shape.sequences, _LENGTH_CLASSES)
  return dataclasses.replace(shape, sequences=merged)
