"""Step batches of images, as a pure function of (seed, step).

The images of a prompt stay together; prompts are spread over micro-batches so
that the fullest is as empty as it can be. All images of a step have one shape.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
from jaxtyping import Float32
import numpy as np

from jaxpref.data.aspect import Size
from jaxpref.data.batch import (
  compared_shapes,
  comparisons_of,
  lists_of,
  slots_of,
)
from jaxpref.data.images import PreparedImages
from jaxpref.data.loader import Loader
from jaxpref.data.order import Order, one_source
from jaxpref.data.packing import Packing, Piece, Shape, Waste, pack_fewest
from jaxpref.data.pixels import PreparedPixels
from jaxpref.data.steps import Calendar
from jaxpref.errors import UserError
from jaxpref.types import ImageBatch, PixelBatch

# What is drawn by these keys: whether a caption is dropped, images mirrored.
_CAPTION, _MIRROR = 1, 2


class ImageSteps(Calendar):
  """The batches of a run, by step number (from 0)."""

  def __init__(
    self,
    data: PreparedImages | PreparedPixels,
    *,
    batch_size: int,
    per_device: int,
    devices: int,
    kept: np.ndarray,
    order: Order | None = None,
    num_steps: int = 0,
    noise_bank: int = 0,
    drop_caption: float = 0.0,
    flip: float = 0.0,
    sampled: bool = False,
    described: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
  ):
    """
    Args:
      data: the examples, encoded or as pixels; a step is alike.
      batch_size: prompts a step.
      per_device: images of one micro-batch on one device.
      devices: that share a micro-batch.
      kept: which responses are computed.
      order: the examples of an epoch; None = as they stand.
      num_steps: how many steps the run has; 0 = one epoch.
      noise_bank: how many draws of noise, timestep, dropped caption and
        mirrored images a prompt has; 0 = another each time.
      drop_caption: the share of draws in which the prompt is empty.
      flip: the share of draws in which all images of the prompt are mirrored.
      sampled: whether training samples images of a prompt, of which `kept` has
        one for their place, and learns from those.
      described: of each caption, what a rater of sampled images takes of it.
      seed: of those draws.

    Raises UserError where the images of a prompt are too many.
    """
    order = order or one_source(len(data), seed=None, bucket=data.bucket)
    super().__init__(len(data), batch_size, order, num_steps)
    self.data, self.kept, self._bucket = data, kept, data.bucket
    self.slots, self.devices = per_device * devices, devices
    self.noise_bank = noise_bank
    self.drop_caption, self.flip, self.seed = drop_caption, flip, seed
    self.sampled, self.described = sampled, described
    self.ref_error: np.ndarray | None = None  # [draws, responses]
    self._pieces = [self._piece(i) for i in range(len(data))]
    check_room(max(piece.size for piece in self._pieces), self.slots)
    self.packing = functools.lru_cache(maxsize=32)(self._packing)
    self.shape = self._plan()

  def __getitem__(self, step: int) -> ImageBatch | PixelBatch:
    """The arrays of a step, on the host."""
    packing = self.packing(step)
    # A step that the plan did not foresee gets a shape of its own.
    shape = dataclasses.replace(self.shape, micro_batches=len(packing))
    draw = self.draw(step)
    lead = (shape.micro_batches, shape.slots)
    prompt, item = np.zeros(lead, np.int32), np.zeros(lead, np.int32)
    images: list[list[Any]] = [[] for _ in packing]
    texts: list[list[Any]] = [[] for _ in packing]
    told: list[list[Any]] = [[] for _ in packing]
    for m, micro in enumerate(packing):
      for p, piece in enumerate(itertools.chain.from_iterable(micro)):
        i = piece.example
        drops = self._happens(self.drop_caption, i, draw, _CAPTION)
        texts[m].append(self.data.text(-1 if drops else i))
        if self.described is not None:
          caption = self.data.caption(i)
          told[m].append(_Described(self.described[caption]))
        mirrored = self._happens(self.flip, i, draw, _MIRROR)
        first = self.data.first_response[i]
        for j in piece.responses:
          slot = len(images[m])
          prompt[m, slot], item[m, slot] = p, j - first
          images[m].append(self.data.image(j, mirrored=mirrored))
    return self.data.batch(
      **_stacked(images, shape.slots),
      **_stacked(texts, shape.rows),
      **(_stacked(told, shape.rows) if self.described is not None else {}),
      prompt=prompt,
      item=item,
      draw=np.full(lead, draw, np.int32),
      ref_error=self._errors(step, lead),
      slots=slots_of(self.data, packing, shape),
      comparisons=comparisons_of(self.data, packing, shape),
      lists=lists_of(self.data, packing, shape),
    )

  def amounts(self, batch: Any) -> dict[str, int]:
    """How much a step holds, by what is counted a second."""
    pairs, images = batch.comparisons.valid, batch.slots.valid
    if self.sampled:
      return {"pairs": int(np.sum(images))}
    return {"pairs": int(np.sum(pairs)), "images": int(np.sum(images))}

  def waste(self, step: int) -> Waste:
    """Images in the place of tokens: what a step computes and does not need."""
    total = len(self.packing(step)) * self.slots
    return Waste(total, total - self.images(step), 0, 0)

  def images(self, step: int) -> int:
    """How many a step holds."""
    return sum(self._pieces[int(i)].size for i in self.examples(step))

  def image_shape(self, step: int) -> Size:
    """Rows and columns of a step's images, in pixels."""
    return self.data.shapes[self._bucket[self.examples(step)[0]]]

  def loader(self, numbers: Sequence[int], threads: int = 2) -> Loader:
    """Batches of the steps with these numbers, made ahead by threads."""
    return Loader(self.__getitem__, numbers, threads=threads)

  def draw(self, step: int) -> int:
    """Which of its bank's draws the prompts of a step have; else the epoch."""
    epoch = step // self.steps_per_epoch
    return epoch % self.noise_bank if self.noise_bank else epoch

  def places(self, step: int) -> Iterator[tuple[int, int, int]]:
    """Micro-batch, slot and response of every image of a step."""
    for m, micro in enumerate(self.packing(step)):
      pieces = itertools.chain.from_iterable(micro)
      found = itertools.chain.from_iterable(x.responses for x in pieces)
      yield from ((m, slot, j) for slot, j in enumerate(found))

  def _errors(
    self, step: int, lead: tuple[int, int]
  ) -> Float32[np.ndarray, "micros slots"] | None:
    if self.ref_error is None:
      return None
    found = np.zeros(lead, np.float32)
    for m, slot, j in self.places(step):
      found[m, slot] = self.ref_error[self.draw(step), j]
    return found

  def _happens(self, share: float, example: int, draw: int, what: int) -> bool:
    """Whether something does in this draw, as often as its share says."""
    rng = np.random.default_rng([self.seed, draw, example, what])
    return bool(rng.random() < share)

  def _piece(self, example: int) -> Piece:
    first, last = self.data.first_response[example : example + 2]
    kept = tuple(j for j in range(first, last) if self.kept[j])
    return Piece(example, kept, len(kept))

  def _packing(self, step: int, at_least: int = 0) -> Packing:
    return pack_fewest(
      [[self._pieces[int(i)]] for i in self.examples(step)],
      rows=1,
      row_length=self.slots,
      at_least=at_least or self.shape.micro_batches,
    )

  def _plan(self) -> Shape:
    """Sizes that every step fits."""
    sizes = np.array([piece.size for piece in self._pieces])
    pairs = np.diff(self.data.first_comparison)
    most = lambda counts: int(np.sort(counts)[::-1][: self.batch_size].sum())
    fewest = max(
      len(self._packing(step, 1)) for step in range(min(self.num_steps, 512))
    )
    prompts = min(self.batch_size, self.slots // int(sizes.min()))
    prompts = shared_out(prompts, self.devices)
    return Shape(
      micro_batches=fewest,
      rows=prompts,
      tokens=self.slots,
      sequences=(),
      responses=0,
      slots=self.slots,
      comparisons=max(1, most(pairs)),
      lists=max(1, prompts),
      items=int(sizes.max()),
    )


class _Described(NamedTuple):
  described: np.ndarray


def _stacked(micros: list[list[Any]], size: int) -> dict[str, Any]:
  """Named trees of arrays as one of arrays [micros, size, ...].

  Padding is a copy of a real one: the gradient needs finite inputs too.
  """
  first = micros[0][0]
  filled = [
    [*each, *(each or [first])[:1] * (size - len(each))] for each in micros
  ]
  stack = lambda *leaves: np.stack(leaves).reshape(
    len(micros), size, *np.shape(leaves[0])
  )
  flat = itertools.chain.from_iterable(filled)
  return jax.tree.map(stack, *flat)._asdict()


def check_room(images: int, slots: int) -> None:
  """Raises UserError where the images of a prompt are too many."""
  if images > slots:
    raise UserError(
      f"A prompt has {images} images, which are computed together, and "
      f"{slots} fit: config.data.rows_per_device, images of one micro-batch on "
      "one device, times the devices. Raise it."
    )


def shared_out(prompts: int, devices: int) -> int:
  """Places for the texts of so many prompts, equally many on each device."""
  return -(-prompts // devices) * devices


def image_batch_shapes(
  shape: Shape,
  *,
  latent: Sequence[int],
  context: Sequence[int],
  pooled: int,
  cached: bool,
) -> ImageBatch:
  """What `ImageSteps` makes, as a jax.ShapeDtypeStruct for each array.

  Args:
    shape: the sizes; its rows are texts.
    latent: Y, X and C.
    context: tokens of a text, and their width.
    pooled: entries of a pooled text.
    cached: whether the reference's errors are among them.
  """
  array = functools.partial(_array, shape)
  return ImageBatch(
    mean=array(np.float32, shape.slots, *latent),
    std=array(np.float32, shape.slots, *latent),
    context=array(np.float32, shape.rows, *context),
    pooled=array(np.float32, shape.rows, pooled),
    **_picture_shapes(shape, cached),
  )


def pixel_batch_shapes(
  shape: Shape, *, size: Size, tokens: Mapping[str, int], cached: bool
) -> PixelBatch:
  """The same of images that are encoded as training goes.

  Args:
    shape: as above.
    size: of an image, in pixels.
    tokens: of a text, for each text encoder.
    cached: as above.
  """
  array = functools.partial(_array, shape)
  return PixelBatch(
    pixels=array(np.uint8, shape.slots, *size, 3),
    ids={name: array(np.int32, shape.rows, n) for name, n in tokens.items()},
    **_picture_shapes(shape, cached),
  )


def _picture_shapes(shape: Shape, cached: bool) -> dict[str, Any]:
  array = functools.partial(_array, shape)
  return {
    "prompt": array(np.int32, shape.slots),
    "item": array(np.int32, shape.slots),
    "draw": array(np.int32, shape.slots),
    "sizes": array(np.float32, shape.slots, 6),
    "ref_error": array(np.float32, shape.slots) if cached else None,
    **compared_shapes(shape),
  }


def _array(shape: Shape, kind: Any, *sizes: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((shape.micro_batches, *sizes), kind)
