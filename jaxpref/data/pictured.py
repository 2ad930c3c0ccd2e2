"""Records of images with their pixels, or why a row has none."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jaxtyping
import numpy as np

from jaxpref.data import build, pictures, read
from jaxpref.data.columns import Refused
from jaxpref.types import Image, Record, Video

Pixels = jaxtyping.UInt8[np.ndarray, "y x 3"]


class Pictured(NamedTuple):
  """A record, and of each of its responses the pixels; a video's still."""

  record: Record
  pixels: list[Pixels]


def pictured(
  files: Sequence[read.Source],
  name: str,
  tally: build.Tally,
  tell: Callable[[read.Refusal], None],
  max_pixels: int = pictures.MAX_PIXELS,
) -> Iterator[Pictured]:
  """The usable records of the files, in order, with every image decoded.

  Args:
    files: see `read.source_files`.
    name: of their format, one of `formats.FORMATS`, or 'auto'.
    tally: what becomes of the rows is added to it.
    tell: is called with each row that is refused, and why.
    max_pixels: of an image.
  """
  records = build.records(files, name, tally, tell)
  return decoded(records, tally, tell, max_pixels)


def decoded(
  records: Iterable[Record],
  tally: build.Tally,
  tell: Callable[[read.Refusal], None],
  max_pixels: int = pictures.MAX_PIXELS,
) -> Iterator[Pictured]:
  """The records with every image decoded; arguments as of `pictured`.

  A row with an image that cannot be decoded is refused whole; one that
  compares images of the same pixels is left out.
  """
  for record in records:
    try:
      pixels = [_pixels(each.content, max_pixels) for each in record.responses]
    except Refused as error:
      tally.refuse(record, error.kind, error.detail, tell)
      continue
    if any(np.array_equal(pixels[b], pixels[w]) for b, w, *_ in
           record.comparisons):  # fmt: skip
      tally.dropped["images of the same pixels"] += 1
    else:
      yield Pictured(record, pixels)


def _pixels(content: object, max_pixels: int) -> Pixels:
  if isinstance(content, Video):  # all of it, or the row is refused
    frames = [pictures.decode(each, max_pixels) for each in content.frames]
    return frames[content.frames.index(content.still)]
  if not isinstance(content, Image):
    raise Refused(
      "texts where images are needed", "the row's answers are not images"
    )
  return pictures.decode(content, max_pixels)
