"""Images that are encoded as training goes: pixels and token ids.

The image files are copied as they are, so that any of them is at hand, whatever
the format and wherever it was. They are decoded, scaled and cut whenever they
are asked for.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from typing import NamedTuple

from jaxtyping import Float32, Int32, UInt8
import numpy as np

from jaxpref import config
from jaxpref.data import formats, numbered, read
from jaxpref.data.aspect import fit
from jaxpref.data.image_index import IndexedImages, find_index, read_images
from jaxpref.data.images import (
  encoded_fingerprint,
  encoding_key,
  image_shapes,
  tell_of_cut_captions,
)
from jaxpref.data.pictures import decode, encoded_bytes
from jaxpref.models.sdxl.image_model import ImageModel, tokenize
from jaxpref.types import Image, PixelBatch


class Fitted(NamedTuple):
  """An image as the autoencoder takes it."""

  pixels: UInt8[np.ndarray, "Y X 3"]
  sizes: Float32[np.ndarray, "6"]  # see `aspect.fit`


class Ids(NamedTuple):
  """A caption as the text encoders take it."""

  ids: dict[str, Int32[np.ndarray, " tokens"]]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedPixels(IndexedImages):
  """Images as pixels, and captions as token ids."""

  copied: pathlib.Path = pathlib.Path()
  model: ImageModel | None = None
  key: str = ""  # as of the same images encoded: see `encoding_key`

  batch = PixelBatch

  def image(self, j: int | np.integer, *, mirrored: bool = False) -> Fitted:
    """Of response j."""
    count = len(self.listed["images"])
    stored = numbered.stored(self.copied, "images", count)
    pixels = decode(Image(stored[self.image_number(j)]))
    return Fitted(*fit(pixels, self.shape(j), mirrored=mirrored))

  def text(self, i: int | np.integer) -> Ids:
    """Of example i's caption; that of the empty caption for -1."""
    assert self.model is not None
    ids, _ = tokenize(self.model, ["" if i == -1 else self.caption(i)])
    return Ids({name: rows[0] for name, rows in ids.items()})

  @functools.cached_property
  def fingerprint(self) -> str:
    return encoded_fingerprint(super().fingerprint, self.key)


def prepare_pixels(
  data: config.Data,
  path: str,
  model: ImageModel,
  say: Callable[[str], None],
  cache_dir: pathlib.Path | None = None,
) -> PreparedPixels:
  """The examples of `path`, their images copied now or found in the cache.

  In a run of several processes all must call it; each copies its share.
  Arguments and errors are those of `images.prepare_images`.
  """
  formats.check_format(data.format)
  shapes = image_shapes(data, model)
  files = read.source_files(path)
  root = cache_dir or config.cache_folder() / "prepared"
  index = find_index(data, path, files, root)
  name = hashlib.sha256(json.dumps(index.contents).encode()).hexdigest()[:32]
  found = PreparedPixels(
    index.folder,
    shapes=shapes,
    copied=root / "copied" / name,
    model=model,
    key=encoding_key(index, model, shapes),
  )
  numbered.fill(functools.partial(_copy, found, files, data.format, say))
  tell_of_cut_captions(found, model, root, found.key, say)
  return found


def _copy(
  data: PreparedPixels,
  files: Sequence[read.Source],
  name: str,
  say: Callable[[str], None],
  shared: bool,
) -> None:
  """Writes what is not written yet, `shared` as of `numbered.missing`."""
  data.copied.mkdir(parents=True, exist_ok=True)
  images, per_file = data.listed["images"], numbered.PER_FILE
  mine = numbered.missing(data.copied, "images", len(images), shared=shared)
  stream = enumerate(read_images(files, name, images) if mine else ())
  for number, group in itertools.groupby(
    stream, lambda item: item[0] // per_file
  ):
    if number in mine:
      entries = (encoded_bytes(image) for _, image in group)
      numbered.write(data.copied, "images", number, entries)
      done = min((number + 1) * per_file, len(images))
      say(f"Copied {done:,} of {len(images):,} images.")
