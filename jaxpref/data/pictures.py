"""Encoded images to pixels, or why not."""

from collections.abc import Iterator
import contextlib
import hashlib
import io
import threading
from typing import Any
import warnings

import fsspec
from jaxtyping import UInt8
import numpy as np
import PIL
from PIL import ExifTags
from PIL.Image import Transpose

from jaxpref.data import columns, videos
from jaxpref.data.columns import Refused
from jaxpref.types import Image

MAX_PIXELS = 2**26
"""Of an image: 8192 × 8192, 192 MiB once decoded."""

# Not all that Pillow can read: for some it starts other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def decode(
  image: Image, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "y x 3"]:
  """The pixels as people see them: upright, and over white where transparent.

  Of an animation or a video, the frame that `image.at` says. Colours are as
  stored: no ICC profile is applied. Threads may decode at the same time.

  Args:
    image: an encoded PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF, or a video (see
      `jaxpref.data.videos`).
    max_pixels: more are refused before any is decoded. Pillow itself allows
      2 × PIL.Image.MAX_IMAGE_PIXELS at most.

  Raises Refused for a file that cannot be read, bytes that are no image, and
  an image that is cut off, too large, or of numbers without a known range.
  """
  with _quiet(), _opened(image) as file:
    is_video = videos.is_video(file.read(videos.HEAD))
    file.seek(0)
    if is_video:
      with _refusing("damaged video", image):
        return videos.frame_at(file, image.at, _name(image), max_pixels)
    with _refusing("not an image", image):
      found = PIL.Image.open(file, formats=_FORMATS)
    width, height = found.size
    if width * height > max_pixels:
      raise Refused(
        "image too large",
        f"{_name(image)} has {width} × {height} pixels, and {max_pixels:,} "
        "are allowed",
      )
    with _refusing("damaged image", image):
      if image.at:
        found.seek(round(image.at * (getattr(found, "n_frames", 1) - 1)))
      found.load()
      return np.array(_upright(_rgb(found, image), _orientation(found)))


def encoded_bytes(image: Image) -> bytes:
  """The file, or of a video the frame as a PNG; Refused as in `decode`."""
  if image.at:
    PIL.Image.fromarray(decode(image)).save(png := io.BytesIO(), "PNG")
    return png.getvalue()
  with _opened(image) as file, _reading(image):
    return file.read()


def digest(image: Image) -> str:
  """A hash of the encoded bytes, in hexadecimal; Refused as in `decode`.

  Of a video with the moment after it.
  """
  with _opened(image) as file, _reading(image):
    found = hashlib.file_digest(file, "sha256").hexdigest()
  return f"{found}@{image.at}" if image.at else found


def _rgb(found: Any, image: Image) -> Any:
  if found.mode.startswith("I;16"):
    found = PIL.Image.fromarray((np.asarray(found) >> 8).astype(np.uint8))
  if found.mode in ("I", "F"):
    raise Refused(
      "image of unknown range",
      f"{_name(image)} holds numbers of 32 bits, which say not what is white; "
      "write it with 8 bits a channel",
    )
  if not found.has_transparency_data:
    return found.convert("RGB")
  above = found.convert("RGBA")
  white = PIL.Image.new("RGBA", found.size, "white")
  return PIL.Image.alpha_composite(white, above).convert("RGB")


def _orientation(found: Any) -> int:
  """EXIF's, 1 for upright; what cannot be read turns nothing."""
  try:
    return int(found.getexif().get(ExifTags.Base.Orientation, 1))
  except Exception:  # of EXIF alone; the pixels are whole
    return 1


def _upright(found: Any, orientation: int) -> Any:
  turn = _TURNS.get(orientation)
  return found if turn is None else found.transpose(turn)


_TURNS = {  # EXIF 2.3, tag 274: what undoes it
  2: Transpose.FLIP_LEFT_RIGHT,
  3: Transpose.ROTATE_180,
  4: Transpose.FLIP_TOP_BOTTOM,
  5: Transpose.TRANSPOSE,
  6: Transpose.ROTATE_270,
  7: Transpose.TRANSVERSE,
  8: Transpose.ROTATE_90,
}


@contextlib.contextmanager
def _opened(image: Image) -> Iterator[Any]:
  if image.data or not image.path:
    yield io.BytesIO(image.data)
    return
  with contextlib.ExitStack() as stack:
    with _reading(image):
      if "://" in image.path:
        file = stack.enter_context(fsspec.open(image.path, "rb"))
      else:
        file = stack.enter_context(open(image.path, "rb"))
    yield file


@contextlib.contextmanager
def _reading(image: Image) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # every store has its own
    told = getattr(error, "strerror", None) or error
    raise Refused(
      "image file cannot be read", f"{_name(image)}: {told}"
    ) from error


@contextlib.contextmanager
def _refusing(kind: str, image: Image) -> Iterator[None]:
  """Damaged files make Pillow raise nearly anything."""
  try:
    yield
  except Refused:
    raise
  except PIL.UnidentifiedImageError:
    told = f"none of {', '.join(_FORMATS)}"
    raise Refused(kind, f"{_name(image)}: {told}") from None
  except PIL.Image.DecompressionBombError as error:
    told = f"{_name(image)}: {error}"
    raise Refused("image too large", told) from error
  except Exception as error:
    raise Refused(kind, f"{_name(image)}: {error}") from error


def _name(image: Image) -> str:
  if image.path:
    return image.path
  return f"{len(image.data):,} bytes, {columns.short(image.data[:8])}"


_LOCK, _QUIET = threading.Lock(), contextlib.ExitStack()
_decoding = 0  # threads that do


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Pillow's warnings in: what matters of them is told as Refused.

  Filters of warnings belong to the whole process, so that the first thread
  of several sets them and the last one puts them back.
  """
  global _decoding
  with _LOCK:
    if not _decoding:
      _QUIET.enter_context(warnings.catch_warnings())
      warnings.filterwarnings("ignore", module=r"PIL\b")
      warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
    _decoding += 1
  try:
    yield
  finally:
    with _LOCK:
      _decoding -= 1
      if not _decoding:
        _QUIET.close()
