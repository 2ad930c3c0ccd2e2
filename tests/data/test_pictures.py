"""Images as people see them, and what is refused in place of one."""

import concurrent.futures
import hashlib
import importlib.util
import io
import pathlib
import warnings

import fsspec
import numpy as np
import PIL.Image
import pytest

from jaxpref.data.columns import Refused
from jaxpref.data.pictures import MAX_PIXELS, decode, digest
from jaxpref.types import Image

_spec = importlib.util.spec_from_file_location(
  "make_image_schemas",
  pathlib.Path(__file__).parent / "schemas/make_image_schemas.py",
)
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)

# Two rows of three pixels, each of another color.
PIXELS = np.array(
  [
    [[255, 0, 0], [0, 255, 0], [0, 0, 255]],
    [[255, 255, 0], [0, 255, 255], [255, 0, 255]],
  ],
  np.uint8,
)


def _encoded(image, kind="PNG", **settings):
  if isinstance(image, np.ndarray):
    image = PIL.Image.fromarray(image)
  image.save(file := io.BytesIO(), kind, **settings)
  return file.getvalue()


@pytest.mark.parametrize(
  ("kind", "settings"),
  [
    ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("GIF", {}),
    ("WEBP", {"lossless": True}),
  ],
)  # fmt: skip
def test_pixels_come_back(kind, settings):
  found = decode(Image(_encoded(PIXELS, kind, **settings)))
  np.testing.assert_array_equal(found, PIXELS)
  assert found.dtype == np.uint8
  assert found.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_pixels_come_back_about(kind):
  gray = np.full((16, 24, 3), 130, np.uint8)
  found = decode(Image(_encoded(gray, kind)))
  assert found.shape == gray.shape
  np.testing.assert_allclose(found, gray, atol=3)


@pytest.mark.parametrize(
  ("orientation", "upright"),
  [
    (1, PIXELS),
    (2, PIXELS[:, ::-1]),
    (3, PIXELS[::-1, ::-1]),
    (4, PIXELS[::-1]),
    (5, PIXELS.transpose(1, 0, 2)),
    (6, np.rot90(PIXELS, -1)),
    (7, PIXELS[::-1, ::-1].transpose(1, 0, 2)),
    (8, np.rot90(PIXELS)),
    (99, PIXELS),
  ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_turns_the_image_upright(kind, orientation, upright):
  """By EXIF's own words, such as 6: the stored left is the top, seen right."""
  exif = PIL.Image.Exif()
  exif[274] = orientation
  settings = {"lossless": True} if kind == "WEBP" else {}
  data = _encoded(PIXELS, kind, exif=exif, **settings)
  np.testing.assert_array_equal(decode(Image(data)), upright)


def test_exif_that_cannot_be_read_turns_nothing():
  data = _encoded(PIXELS, exif=b"Exif\0\0no such thing")
  np.testing.assert_array_equal(decode(Image(data)), PIXELS)


def test_what_is_transparent_is_white():
  alpha = np.array([[0, 255, 51], [255, 255, 0]], np.uint8)
  found = decode(Image(_encoded(np.dstack([PIXELS, alpha]))))
  expected = PIXELS.copy()
  expected[0, 0] = expected[1, 2] = 255
  expected[0, 2] = 204, 204, 255  # a fifth of blue
  np.testing.assert_array_equal(found, expected)
  palette = PIL.Image.fromarray(PIXELS).quantize(8)
  clear = palette.getpixel((1, 1))
  for hidden in (clear, bytes(0 if i == clear else 255 for i in range(8))):
    found = decode(Image(_encoded(palette, transparency=hidden)))
    assert found[1, 1].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [255, 0, 0]


def test_other_kinds_of_pixels():
  gray = PIXELS[..., 0]
  expected = np.repeat(gray[..., None], 3, axis=-1)
  for image in (gray, gray > 0, gray.astype(np.uint16) << 8):
    np.testing.assert_array_equal(decode(Image(_encoded(image))), expected)
  ink = PIL.Image.new("CMYK", (3, 2), (0, 255, 255, 0))
  found = decode(Image(_encoded(ink, "TIFF")))
  np.testing.assert_array_equal(found[0, 0], [255, 0, 0])
  wide = _encoded(gray.astype(np.float32), "TIFF")
  with pytest.raises(Refused, match=r"unknown range: .*; write it with 8 bits"):
    decode(Image(wide))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_read(kind):
  other = PIL.Image.fromarray(PIXELS[::-1])
  settings = {"lossless": True} if kind == "WEBP" else {}
  data = _encoded(
    PIXELS, kind, save_all=True, append_images=[other], **settings
  )
  assert PIL.Image.open(io.BytesIO(data)).n_frames == 2
  np.testing.assert_array_equal(decode(Image(data)), PIXELS)


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
EPS = (
  b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage"
)


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (b"", "not an image: 0 bytes, b'': none of PNG, JPEG"),
    (b"not an image", "not an image: 12 bytes, b'not an i'"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    (EPS, "not an image"),  # Pillow starts Ghostscript for it
    (_encoded(NOISE)[:10], "not an image"),
    (_encoded(NOISE)[:2000], "damaged image: 2,000 bytes, .*truncated"),
    (_encoded(NOISE, "JPEG")[:-900], "damaged image: .*truncated"),
    (_encoded(NOISE, "BMP")[:900], "damaged image"),
    (_encoded(NOISE, "WEBP")[:300], "image"),
    (schemas.bomb(2**16, 2**16), "image too large"),
    (schemas.bomb(12_000, 12_000), "12000 × 12000 pixels, and 67,108,864 are"),
    (schemas.bomb(0, 8), "not an image"),
    (schemas.bomb(8, 8), "damaged image"),
  ],
)  # fmt: skip
def test_refuses_what_is_no_whole_image(data, reason):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(Refused, match=reason) as error:
      decode(Image(data))
  assert len(str(error.value)) < 300


def test_pixels_are_counted_before_they_are_decoded():
  data = _encoded(PIL.Image.new("1", (10_000, 9_000)))  # Pillow would warn
  with pytest.raises(Refused, match="image too large"):
    decode(Image(data))
  assert MAX_PIXELS < 10_000 * 9_000
  small = Image(_encoded(PIXELS))
  assert decode(small, max_pixels=6).shape == (2, 3, 3)
  with pytest.raises(Refused, match="2 pixels, and 5 are allowed"):
    decode(small, max_pixels=5)


def test_files_and_urls_are_read(tmp_path):
  data = _encoded(PIXELS)
  file = tmp_path / "a::b #1.png"
  file.write_bytes(data)
  fsspec.filesystem("memory").pipe("/pictures/a.png", data)
  for path in (str(file), "memory://pictures/a.png"):
    np.testing.assert_array_equal(decode(Image(path=path)), PIXELS)
    assert digest(Image(path=path)) == hashlib.sha256(data).hexdigest()
  assert digest(Image(data)) == digest(Image(data, "elsewhere"))


@pytest.mark.parametrize(
  ("path", "reason"),
  [
    ("gone.png", r"gone\.png: No such file"),
    (".", "Is a directory"),
    ("\0.png", "null"),
    ("memory://gone.png", "memory://gone.png"),
    ("nosuch://a.png", "nosuch"),
  ],
)
def test_refuses_a_file_that_cannot_be_read(tmp_path, path, reason):
  if "://" not in path:
    path = f"{tmp_path}/{path}"
  for read in (decode, digest):
    with pytest.raises(Refused, match=f"image file cannot be read.*{reason}"):
      read(Image(path=path))


def test_threads_leave_the_filters_of_warnings_as_they_were():
  images = [Image(schemas.bomb(12_000, 12_000)), Image(_encoded(NOISE))] * 40
  before = list(warnings.filters)

  def read(image):
    try:
      return decode(image).shape
    except Refused as error:
      return error.kind

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(read, images))
  assert found == ["image too large", (40, 40, 3)] * 40
  assert warnings.filters == before
