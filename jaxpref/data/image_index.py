"""Image preferences without the pixels: who is compared with whom.

A prepared folder as that of text, in which a prompt is the number of its
caption and a response the number of its image. So pairing, curricula, holdout
and order are those of text. Equal captions and equal images are stored once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Int
import numpy as np

from jaxpref import config
from jaxpref.data import formats, view
from jaxpref.data.aspect import Size, nearest_shapes
from jaxpref.data.build import Table, Tally, records
from jaxpref.data.cache import MANIFEST, REJECTED, Prepared
from jaxpref.data.columns import Refused
from jaxpref.data.pictured import pictured
from jaxpref.data.pictures import digest
from jaxpref.data.prepared import check_refusals, find_folder
from jaxpref.data.read import Refusal, Source
from jaxpref.data.text import Tokens
from jaxpref.errors import UserError
from jaxpref.types import Image, Record, Response, Video

RULES_VERSION = 2  # of reading, resizing and encoding; part of the keys
_LISTED = "listed.json"  # the captions, and a digest of each image, by number
_SIZES = "sizes.json"  # rows and columns of each image, by number


class Shown(NamedTuple):
  """An image of a response."""

  digest: str
  size: Size


Read = Callable[
  [Sequence[Source], str, Tally, Callable[[Refusal], None]],
  Iterator[tuple[Record, list[list[Shown]]]],
]
"""As `pictured`, but for what each response shows."""


def read_shown(
  files: Sequence[Source],
  name: str,
  tally: Tally,
  refuse: Callable[[Refusal], None],
) -> Iterator[tuple[Record, list[list[Shown]]]]:
  """Decodes every image once, so that the index names none that cannot be."""
  for record, pixels in pictured(files, name, tally, refuse):
    shown = [
      [Shown(digest(_image(response)), each.shape[:2])]
      for response, each in zip(record.responses, pixels, strict=True)
    ]
    yield record, shown


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedImages(Prepared):
  """Examples whose responses are images and whose prompts are captions.

  All images of a record are cut to one shape: the nearest to them.
  """

  shapes: tuple[Size, ...] = ((0, 0),)  # that there are; none yet in an index

  def image_number(self, j: int | np.integer) -> int:
    """Which of `listed["images"]` response j is."""
    return int(self.response(j)[0])

  def caption_number(self, i: int | np.integer) -> int:
    """Which of `listed["captions"]` example i's images show."""
    return int(self.prompt(i)[0])

  def caption(self, i: int | np.integer) -> str:
    """What example i's images show."""
    return self.listed["captions"][self.caption_number(i)]

  @property
  def bucket(self) -> Int[np.ndarray, " n"]:
    """Which of `shapes` each example's images are cut to."""
    return self._buckets[self._view["prompt_start"]]

  def shape(self, j: int | np.integer) -> Size:
    """What response j is cut to."""
    return self.shapes[self._buckets[self._view["response_start"][j]]]

  def cut_number(self, j: int | np.integer) -> int:
    """Which of `cuts` response j is."""
    key = self._keys[self._view["response_start"][j]]
    return int(np.searchsorted(self._cut_keys, key))

  @functools.cached_property
  def cuts(self) -> Int[np.ndarray, "cuts 2"]:
    """The folder's images and their shapes, by number.

    In the order of the images; one that belongs to several prompts is there
    in each shape that they have.
    """
    return np.stack(np.divmod(self._cut_keys, len(self.shapes)), axis=1)

  @functools.cached_property
  def listed(self) -> Mapping[str, list[str]]:
    """The captions, and a digest of each of the images."""
    return json.loads((self.folder / _LISTED).read_text())

  @functools.cached_property
  def contents(self) -> dict[str, str]:
    """What tells the images and captions of this index from others."""
    listed = (self.folder / _LISTED).read_bytes()
    return {
      "index": self.fingerprint,
      "listed": hashlib.sha256(listed).hexdigest(),
    }

  def summary(self) -> str:
    """What was read and refused, in a few lines."""
    stats, files = self.stats, self._manifest["files"]
    names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
    refused = ", ".join(f"{n:,} {kind}" for kind, n in stats["refused"].items())
    return (
      f"{names}: {stats['rows']:,} rows, {refused or 'none'} refused; "
      f"{self._told_content()}\n{self._manifest['formats']}"
      f"{self._told_shapes()}"
    )

  def _told_content(self) -> str:
    stats = self.stats
    return (
      f"{stats['examples']:,} examples with {stats['responses']:,} images, "
      f"{stats['images']:,} of them different, of {stats['captions']:,} "
      "captions."
    )

  def _told_shapes(self) -> str:
    if len(self.shapes) == 1:
      return ""
    counts = np.bincount(self.bucket, minlength=len(self.shapes)).tolist()
    told = ", ".join(
      f"{count:,} of {rows} x {columns}"
      for count, (rows, columns) in zip(counts, self.shapes, strict=True)
    )
    return f"\nExamples by the rows and columns of their images: {told}."

  # A caption and an image are a token each of the folder: what belongs to a
  # token does not depend on which examples are selected.

  @functools.cached_property
  def _buckets(self) -> Int[np.ndarray, " tokens"]:
    """Of each token, its example's shape."""
    if len(self.shapes) == 1:
      return np.zeros(len(self._tokens), np.int64)
    first = self._arrays["first_response"]
    images = self._tokens[view.starts(self._arrays)["response_start"]]
    sizes = np.array(json.loads((self.folder / _SIZES).read_text()))
    found = nearest_shapes(sizes[images], first, self.shapes)
    return np.repeat(found, 1 + np.diff(first))

  @functools.cached_property
  def _keys(self) -> Int[np.ndarray, " tokens"]:
    """Of each token, a number for image and shape."""
    return self._tokens * np.int64(len(self.shapes)) + self._buckets

  @functools.cached_property
  def _cut_keys(self) -> Int[np.ndarray, " cuts"]:
    return np.unique(self._keys[view.starts(self._arrays)["response_start"]])


def find_index(
  data: config.Data,
  path: str,
  files: Sequence[Source],
  root: pathlib.Path,
  kind: str = "images",
  read: Read = read_shown,
) -> IndexedImages:
  """The examples of the files, read now or found in the cache.

  Args:
    data: format, max_rejected, and whether shapes are chosen.
    path: of the files, for messages.
    files: see `read.source_files`.
    root: where preparations are.
    kind: what `read` makes of the files.
    read: them.

  Raises UserError for more refused rows than data.max_rejected, or nothing
  left to use.
  """
  depends = {
    kind: RULES_VERSION,
    "files": {file.name: file.digest() for file in files},
    "format": data.format,
    # Older ones know no sizes.
    **({"sizes": True} if data.aspect_buckets > 1 else {}),
  }
  folder = find_folder(
    depends,
    lambda folder: write_index(folder, files, data, depends, read),
    root,
  )
  index = IndexedImages(folder)
  check_refusals(index, data, path)
  if not len(index):
    raise UserError(f"{path}: no example is left of its rows.")
  return index


def write_index(
  folder: pathlib.Path,
  files: Sequence[Source],
  data: config.Data,
  depends: Mapping[str, Any],
  read: Read = read_shown,
) -> None:
  """The folder of an index; arguments as of `find_index`."""
  names = {file.name: number for number, file in enumerate(files)}
  tally, table = Tally(), Table(folder, names)
  captions, images = _Numbers(), _Numbers()
  sizes = dict[int, Size]()
  try:
    with open(folder / REJECTED, "w") as rejected:

      def refuse(refusal: Refusal) -> None:
        rejected.write(json.dumps(refusal._asdict()) + "\n")

      for record, shown in read(files, data.format, tally, refuse):
        if not isinstance(record.prompt, str):
          told = "an image shows one text, and no turns"
          tally.refuse(record, "prompt is not a text", told, refuse)
          continue
        for each in itertools.chain.from_iterable(shown):
          sizes[images[each.digest]] = each.size
        seen = [[images[each.digest] for each in one] for one in shown]
        table.append(record, Tokens([captions[record.prompt]], seen))
    fingerprint, counts = table.close()
  finally:
    table.abandon()
  listed = {"captions": list(captions), "images": list(images)}
  (folder / _LISTED).write_text(json.dumps(listed))
  (folder / _SIZES).write_text(
    json.dumps([sizes[n] for n in range(len(sizes))])
  )
  manifest = {
    "files": list(names),
    "formats": formats.explain(tally.formats),
    "axes": table.axes,
    "fingerprint": fingerprint,
    "stats": tally.stats()
    | counts
    | {"captions": len(captions), "images": len(images)},
    "depends": depends,
  }
  (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def read_images(
  files: Sequence[Source], name: str, listed: Sequence[str]
) -> Iterator[Image]:
  """The images with these digests, in their order, which is an index's.

  Some may also be in rows that were refused, before the row that numbers them.

  Raises UserError where one is not there any more.
  """
  left = iter(listed)
  wanted = next(left, None)
  for record in records(files, name, Tally(), lambda refusal: None):
    for response in record.responses:
      with contextlib.suppress(Refused):
        if digest(_image(response)) == wanted:
          yield _image(response)
          if (wanted := next(left, None)) is None:
            return
  if wanted is not None:
    names = ", ".join(str(file) for file in files[:3])
    raise UserError(
      f"{names}: an image that was there when the data were first read cannot "
      "be read any more, or has changed. Bring it back; or change the file "
      "that names it, so that all is read anew."
    )


def _image(response: Response) -> Image:
  content = response.content
  if isinstance(content, Video):
    return content.still
  if not isinstance(content, Image):
    raise Refused("response is not an image")
  return content


class _Numbers(dict[str, int]):
  """Numbers keys as they are asked for."""

  def __missing__(self, key: str) -> int:
    return self.setdefault(key, len(self))
