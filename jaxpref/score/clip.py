"""Ratings of images by CLIP and what was tuned from it."""

from collections.abc import Mapping, Sequence
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8
import numpy as np
from PIL import Image

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.models.sdxl.clip_folder import (
  ClipFolder,
  load_clip,
  open_clip,
  rate,
  text_vectors,
)
from jaxpref.models.sdxl.image_model import read_tokenizer
from jaxpref.models.tensors import read_json
from jaxpref.types import Params

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
    height, width = self._scaled(pixels.shape)
    image = Image.fromarray(pixels)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return self._finished(np.asarray(image, np.float32)[None])[0]

  def on_device(
    self, pixels: UInt8[Array, "images y x 3"]
  ) -> Float32[Array, "images Y X 3"]:
    """The same in a program of JAX."""
    images, channels = pixels.shape[0], pixels.shape[3]
    size = (images, *self._scaled(pixels.shape[1:]), channels)
    scaled = jax.image.resize(pixels.astype(jnp.float32), size, "cubic")
    return self._finished(jnp.clip(scaled, 0.0, 255.0))

  def _scaled(self, shape: Sequence[int]) -> tuple[int, int]:
    height, width = (x * self.shortest // min(shape[:2]) for x in shape[:2])
    return height, width

  def _finished(self, pixels: Any) -> Any:
    top = (pixels.shape[1] - self.height) // 2
    left = (pixels.shape[2] - self.width) // 2
    cut = pixels[:, top : top + self.height, left : left + self.width]
    mean, std = (
      np.array(each, np.float32).reshape(1, 1, 1, 3)
      for each in (self.mean, self.std)
    )
    return (cut / 255.0 - mean) / std


def _one_device() -> Any:
  """Of this process: over a mesh of several, all of them would have to rate."""
  mesh = sharding.make_mesh(1, 1, 1, jax.local_devices()[:1])
  return jax.set_mesh(mesh)


def _turns(count: int) -> list[np.ndarray]:
  """Rows of each call; the last ones are filled up by the first again."""
  return [
    np.arange(start, start + _TOGETHER) % count
    for start in range(0, count, _TOGETHER)
  ]


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
    steps = ("resize", "center_crop", "rescale", "normalize")
    off = [x for x in steps if given.get(f"do_{x}", True) is not True]
    if given.get("resample", 3) != 3 or shortest < max(cut) or off:
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
    self._rate = jax.jit(functools.partial(rate, self._clip))
    self._describe = jax.jit(functools.partial(text_vectors, self._clip))

  @functools.cached_property
  def params(self) -> dict[str, Params]:
    """All of its weights."""
    return load_clip(self._clip)

  def __call__(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], texts: Sequence[str]
  ) -> Float32[np.ndarray, " images"]:
    """Args: images of any size, and of each what it shows."""
    pixels = np.stack([self._prepare(each) for each in images])
    vectors = self.describe(texts)
    found = []
    with _one_device():
      for here in _turns(len(images)):
        own = None if vectors is None else vectors[here]
        found.append(self._rate(self.params, pixels[here], own))
    return np.concatenate(jax.device_get(found))[: len(images)]

  def describe(
    self, texts: Sequence[str]
  ) -> Float32[np.ndarray, "texts P"] | None:
    """What `rate_pixels` takes of texts; None where they are not read."""
    if not self._clip.text:
      return None
    ids = self._ids(texts)
    with _one_device():
      found = [self._describe(self.params, ids[x]) for x in _turns(len(texts))]
    return np.concatenate(jax.device_get(found))[: len(texts)]

  def rate_pixels(
    self,
    params: Mapping[str, Params],
    pixels: UInt8[Array, "images Y X 3"],
    vectors: Float32[Array, "images P"] | None,
  ) -> Float32[Array, " images"]:
    """The same within a program: images of one size, and `describe`'s vectors.

    JAX scales them without rounding to levels of 256, as Pillow does.
    """
    return rate(self._clip, params, self._prepare.on_device(pixels), vectors)

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


@functools.cache
def open_scorer(folder: str) -> ClipScorer:
  """The same scorer, with the same weights, for all who ask."""
  return ClipScorer(folder)
