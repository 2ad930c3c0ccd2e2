"""Frames of videos and of animations, by their moment."""

import io
import re
import sys

import av
import numpy as np
import PIL.Image
import pytest

from jaxpref.data import videos
from jaxpref.data.columns import Refused
from jaxpref.data.pictures import decode, digest, encoded_bytes
from jaxpref.types import Image, Video

GRAYS = (0, 60, 120, 180, 240)
MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _video(kind="mp4", codec="mpeg4", grays=GRAYS, size=(48, 32), rate=8):
  """A frame of each gray, 48 pixels wide and 32 high."""
  with av.open(file := io.BytesIO(), "w", format=kind) as out:
    stream = out.add_stream(codec, rate=rate)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = 2  # so that some frames need others
    for gray in grays:
      pixels = np.full((size[1], size[0], 3), gray, np.uint8)
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode())
  return file.getvalue()


@pytest.mark.parametrize(
  ("kind", "codec"),
  [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4")],
)
def test_a_frame_of_each_moment(kind, codec):
  data = _video(kind, codec)
  assert videos.is_video(data[: videos.HEAD])
  found = [decode(Image(data, at=at)) for at in MOMENTS]
  assert {each.shape for each in found} == {(32, 48, 3)}
  assert [each.dtype for each in found] == [np.uint8] * 5
  means = [each.mean() for each in found]
  np.testing.assert_allclose(means[0], GRAYS[0], atol=8)
  assert np.abs(np.array(means)[:, None] - GRAYS).min(axis=1).max() < 8
  assert (np.diff(means) > 30).sum() >= 3  # later moments are later frames
  np.testing.assert_allclose(means[-1], GRAYS[-1], atol=8)


def test_a_frame_of_an_animation():
  frames = [PIL.Image.new("L", (8, 6), gray) for gray in GRAYS]
  frames[0].save(
    file := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:]
  )
  found = [decode(Image(file.getvalue(), at=at))[0, 0, 0] for at in MOMENTS]
  assert found == list(GRAYS)


def test_images_in_the_same_container_are_images():
  gray = PIL.Image.new("RGB", (16, 16), (130, 130, 130))
  gray.save(file := io.BytesIO(), "AVIF")
  assert not videos.is_video(file.getvalue()[: videos.HEAD])
  assert not videos.is_video(b"RIFF1234WEBP")
  assert not videos.is_video(b"")


def test_the_still_of_a_video_is_known_by_its_moment():
  data = _video()
  frames = tuple(Image(data, at=at) for at in MOMENTS)
  assert Video(frames).still == Image(data, at=0.5)
  first, still = digest(frames[0]), digest(frames[2])
  assert still == f"{first}@0.5"
  # A copy of it is that frame alone.
  copied = decode(Image(encoded_bytes(frames[2])))
  np.testing.assert_array_equal(copied, decode(frames[2]))
  assert encoded_bytes(frames[0]) == data


def test_refuses_what_cannot_be_decoded(monkeypatch):
  whole = _video()
  with pytest.raises(
    Refused, match=r"image too large: .*48 × 32 pixels a frame"
  ):
    decode(Image(whole), max_pixels=1000)
  with pytest.raises(Refused, match="damaged video"):
    decode(Image(whole[:-300]))
  monkeypatch.setitem(sys.modules, "av", None)
  told = re.escape("`pip install jaxpref[video]`")
  with pytest.raises(Refused, match=told):
    decode(Image(whole))
