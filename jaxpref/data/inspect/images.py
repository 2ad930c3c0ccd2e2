"""What is in preferences among images; no tokenizer is needed."""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import hashlib

import numpy as np

from jaxpref import config
from jaxpref.data import build, read
from jaxpref.data.inspect.measure import Findings
from jaxpref.data.inspect.tables import (
  Line,
  Section,
  length_bias,
  rows,
  scores,
  share,
)
from jaxpref.data.pictured import Pictured, pictured
from jaxpref.types import PICTURES

_SIZES = 6  # that are told


def first_is_image(path: str, name: str) -> bool | None:
  """Whether the first record that can be read has images; None: there is none.

  Args:
    path: as config.data.path.
    name: of the format, as config.data.format.
  """
  ignore = lambda refusal: None
  records = build.records(read.source_files(path), name, build.Tally(), ignore)
  if (first := next(records, None)) is None:
    return None
  return isinstance(first.responses[0].content, PICTURES)


@dataclasses.dataclass
class ImageFindings(Findings):
  """What a data set of images holds; lengths are pixels."""

  sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
  shown: list[Pictured] = dataclasses.field(default_factory=list)
  _images: set[bytes] = dataclasses.field(default_factory=set)

  def add_pictured(self, found: Pictured) -> None:
    record, pixels = found
    contents = [_digest(each) for each in pixels]
    sizes = [(each.shape[1], each.shape[0]) for each in pixels]
    self.sizes.update(sizes)
    self._images.update(contents)
    self.counts["images"] += len(pixels)
    self.counts["different images"] = len(self._images)
    self.counts["not compared"] += not record.comparisons
    self.add_record(record, [x * y for x, y in sizes], contents)


def measure(path: str, data: config.Data, examples: int = 3) -> ImageFindings:
  """Reads and decodes all of `path`, and counts.

  Args:
    path: as config.data.path.
    data: `format` is read.
    examples: how many records are kept to be shown.

  Raises UserError for files that cannot be read.
  """
  found = ImageFindings()
  files = read.source_files(path)
  for each in pictured(files, data.format, found.tally, found.refusals.append):
    found.add_pictured(each)
    if len(found.shown) < examples:
      found.shown.append(each)
  return found


def sections(found: ImageFindings) -> list[Section]:
  parts = [
    Section("Rows", list(rows(found))),
    Section("Images", list(_images(found))),
    Section("Comparisons", list(_comparisons(found))),
    Section("Scores", list(scores(found))),
    Section("Width × height", list(_sizes(found))),
  ]
  return [part for part in parts if part.lines]


def _images(found: ImageFindings) -> Iterator[Line]:
  counts, records = found.counts, found.counts["records"]
  refused = found.tally.refused
  yield Line("examples", f"{records:,}", "one prompt with its images")
  each = [f"{n:,} × {size}" for size, n in sorted(found.responses.items())]
  yield Line("images to a prompt", ", ".join(each), "examples × images")
  yield Line(
    "not decoded",
    f"{sum(refused[kind] for kind in _UNDECODED):,}",
    "rows with an image that cannot be, refused above",
  )
  yield Line("different prompts", f"{counts['prompts']:,}")
  yield Line(
    "different images",
    share(counts["different images"], counts["images"]),
    "by their pixels",
  )
  yield Line(
    "repeated examples",
    share(counts["repeated records"], records),
    "same prompt and images as one before",
  )
  yield Line(
    "equal images", share(counts["equal responses"], records), "in one example"
  )


def _comparisons(found: ImageFindings) -> Iterator[Line]:
  counts, pairs = found.counts, found.pairs
  told = counts["comparisons"]
  yield Line("comparisons", f"{told:,}", "that the rows bring themselves")
  yield Line("ties", share(counts["ties"], told), "neither image is better")
  yield Line("soft", share(counts["soft"], told), "annotators do not all agree")
  yield Line(
    "not compared",
    share(counts["not compared"], counts["records"]),
    "examples; scores, where there are some, can compare their images",
  )
  refused = found.tally.refused["chosen equals rejected"]
  alike = found.tally.dropped["images of the same pixels"]
  yield Line("chosen = rejected", f"{refused + alike:,}", "left out above")
  yield Line(
    "contradictions",
    f"{counts['contradictions']:,}",
    "the same two images, compared the other way before",
  )
  if (larger := length_bias(pairs))[1]:
    yield Line(
      "larger image wins",
      share(*larger),
      "of pairs of unlike pixel counts; without bias, about half",
    )


def _sizes(found: ImageFindings) -> Iterator[Line]:
  for (x, y), count in found.sizes.most_common(_SIZES):
    yield Line(f"{x:,} × {y:,}", share(count, found.counts["images"]))
  if (others := len(found.sizes) - _SIZES) > 0:
    yield Line("other sizes", f"{others:,}")


def _digest(pixels: np.ndarray) -> bytes:
  whole = str(pixels.shape).encode() + pixels.tobytes()
  return hashlib.blake2b(whole, digest_size=12).digest()


_UNDECODED = (
  "not an image",
  "damaged image",
  "image too large",
  "image of unknown range",
  "image file cannot be read",
)
