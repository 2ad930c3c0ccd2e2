"""Prompts alone, of which a model samples images as it trains.

Of data with images the prompts are all that is read: nothing is decoded, and no
latent is stored.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import pathlib

from jaxtyping import Int
import numpy as np

from jaxpref import config
from jaxpref.data import formats, numbered, read
from jaxpref.data.aspect import Size
from jaxpref.data.build import Tally, records
from jaxpref.data.image_index import Shown, find_index
from jaxpref.data.images import (
  Latent,
  PreparedImages,
  encode_missing,
  encoding_key,
  resolution,
  tell_of_cut_captions,
)
from jaxpref.models.sdxl.image_model import ImageModel
from jaxpref.types import PICTURES, Record, Response


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedPrompts(PreparedImages):
  """Captions as the UNet is told them, and a place for the images of each."""

  latent: tuple[int, int, int] = (0, 0, 0)  # Y, X and C of those images

  @functools.cached_property
  def cuts(self) -> Int[np.ndarray, "cuts 2"]:
    """None: nothing of the data is cut."""
    return np.zeros((0, 2), np.int64)

  def shape(self, j: int | np.integer) -> Size:
    """Of what will be sampled."""
    return self.shapes[0]

  def image(self, j: int | np.integer, *, mirrored: bool = False) -> Latent:
    """Nothing, in the shape of what will be sampled."""
    nothing = np.zeros(self.latent, np.float32)
    return Latent(nothing, nothing, np.zeros(6, np.float32))

  def _told_content(self) -> str:
    return (
      f"{self.stats['examples']:,} prompts, {self.stats['captions']:,} of them "
      "different. Training samples images of them, and reads no others."
    )


def prepare_prompts(
  data: config.Data,
  path: str,
  model: ImageModel,
  say: Callable[[str], None],
  cache_dir: pathlib.Path | None = None,
) -> PreparedPrompts:
  """The prompts of `path`, encoded now or found in the cache.

  In a run of several processes all must call it; each encodes its share.
  Arguments and errors are those of `images.prepare_images`.
  """
  formats.check_format(data.format, prompts=True)
  side = resolution(data, model)
  latent = side // model.factor
  files = read.source_files(path)
  root = cache_dir or config.cache_folder() / "prepared"
  index = find_index(data, path, files, root, "prompts", _read)
  found = PreparedPrompts(
    index.folder,
    shapes=((side, side),),
    encoded=root / "encoded" / encoding_key(index, model, ()),
    latent=(latent, latent, model.definitions["unet"].config.in_channels),
  )
  numbered.fill(
    functools.partial(encode_missing, found, files, data, model, say)
  )
  tell_of_cut_captions(found, model, root, found.encoded.name, say)
  return found


def _read(
  files: Sequence[read.Source],
  name: str,
  tally: Tally,
  refuse: Callable[[read.Refusal], None],
) -> Iterator[tuple[Record, list[list[Shown]]]]:
  """As `image_index.read_shown`; one response of nothing has each prompt."""
  for record in records(files, name, tally, refuse, prompts=True):
    contents = (each.content for each in record.responses)
    if all(isinstance(each, PICTURES) for each in contents):
      one = dataclasses.replace(
        record, responses=[Response("")], comparisons=()
      )
      yield one, [[]]
    else:
      told = "the row's answers are not images"
      tally.refuse(record, "texts where images are needed", told, refuse)
