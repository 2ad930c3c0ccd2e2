"""Ratings of images by CLIP and what was tuned from it."""

from collections.abc import Mapping, Sequence
import functools
import pathlib
from typing import Any, NamedTuple

import jax
from jaxtyping import Float32, UInt8
import numpy as np
from PIL import Image

from jaxpref.errors import UserError
from jaxpref.models.sdxl.clip_folder import (
  ClipFolder,
  load_clip,
  open_clip,
  rate,
)
from jaxpref.models.sdxl.image_model import read_tokenizer
from jaxpref.models.tensors import read_json

_TOGETHER = 8  # images of a call; a constant, so that it changes no bit


class Preparation(NamedTuple):
  """How a folder's preprocessor_config.json makes images ready."""

  shortest: int  # pixels of the shorter side, after scaling
  height: int  # of the middle that is cut out
  width: int
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __call__(
    self, pixels: UInt8[np.ndarray, "y x 3"]
  ) -> Float32[np.ndarray, "Y X 3"]:
    """Scales by Pillow's bicubic filter, cuts the middle out, normalises."""
    height, width = pixels.shape[:2]
    scale = self.shortest / min(height, width)
    size = (
      max(self.shortest, int(width * scale)),
      max(self.shortest, int(height * scale)),
    )
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
    cut = image.crop((left, top, left + self.width, top + self.height))
    mean, std = np.array(self.mean, "f4"), np.array(self.std, "f4")
    return (np.asarray(cut, "f4") / 255.0 - mean) / std


def read_preparation(folder: pathlib.Path) -> Preparation:
  """Raises UserError for a file that asks for something else."""
  path = folder / "preprocessor_config.json"
  given = read_json(path)
  try:
    cut = given["crop_size"]
    cut = (cut, cut) if isinstance(cut, int) else (cut["height"], cut["width"])
    size = given["size"]
    shortest = size if isinstance(size, int) else size["shortest_edge"]
    mean, std = tuple(given["image_mean"]), tuple(given["image_std"])
    if given.get("resample", 3) != 3 or shortest < max(cut):
      raise ValueError("it is not CLIP's: scaled by 'bicubic' (3), then cut")
    return Preparation(shortest, cut[0], cut[1], mean, std)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path}: {error!r} in what makes images ready. Take the file that came "
      "with the model."
    ) from None


class ClipScorer:
  """Rates images, with their texts or alone; see `clip_folder.rate`."""

  def __init__(self, folder: str):
    """Raises UserError for a folder that cannot be used; loads no weights."""
    self._clip: ClipFolder = open_clip(folder)
    self._prepare = read_preparation(self._clip.folder)
    side = self._clip.vision.config.image_size
    if (self._prepare.height, self._prepare.width) != (side, side):
      raise UserError(
        f"{folder}: preprocessor_config.json cuts images to "
        f"{self._prepare.width} × {self._prepare.height} pixels, and "
        f"config.json wants {side} × {side}. Take both of the same model."
      )
    text = self._clip.text
    self._tokenizer = read_tokenizer(self._clip.folder) if text else None
    self._program = jax.jit(functools.partial(rate, self._clip))

  @functools.cached_property
  def _params(self) -> Mapping[str, Any]:
    return load_clip(self._clip)

  def __call__(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], texts: Sequence[str]
  ) -> Float32[np.ndarray, " images"]:
    """Args: images of any size, and of each what it shows."""
    pixels = np.stack([self._prepare(each) for each in images])
    ids = self._ids(texts) if self._clip.text else None
    found = []
    for start in range(0, len(images), _TOGETHER):
      # The last ones are filled up by the first again.
      here = np.arange(start, start + _TOGETHER) % len(images)
      own = None if ids is None else ids[here]
      found.append(self._program(self._params, pixels[here], own))
    return np.concatenate(jax.device_get(found))[: len(images)]

  def _ids(self, texts: Sequence[str]) -> np.ndarray:
    """What is too long is cut, and ends as every text does."""
    assert self._clip.text
    assert self._tokenizer
    return self._tokenizer(
      list(texts),
      padding="max_length",
      max_length=self._clip.text.config.max_position_embeddings,
      truncation=True,
      return_tensors="np",
    ).input_ids.astype(np.int32)
