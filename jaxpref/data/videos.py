"""Single frames of videos in MP4, WebM, Matroska, QuickTime or AVI.

PyAV (FFmpeg's libraries; `pip install jaxpref[video]`) decodes them.
"""

from typing import Any

from jaxtyping import UInt8
import numpy as np

from jaxpref.data.columns import Refused

HEAD = 12
"""Bytes that tell a video."""

# AVIF and HEIF are images in the container of MP4.
_IMAGES = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix")


_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip")  # of old files


def is_video(head: bytes) -> bool:
  """Whether a file that begins so is a video; of HEAD bytes."""
  if head[4:8] == b"ftyp":
    return head[8:12] not in _IMAGES
  if head[4:8] in _QUICKTIME:
    return True
  matroska = head.startswith(b"\x1a\x45\xdf\xa3")
  return matroska or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def frame_at(
  file: Any, at: float, name: str, max_pixels: int
) -> UInt8[np.ndarray, "y x 3"]:
  """The frame that is seen at a moment, as it is stored: not turned.

  Args:
    file: a binary file that can be sought in.
    at: from 0, the first frame, to 1, the last.
    name: of the file, for messages.
    max_pixels: larger frames are refused before any is decoded.

  Raises Refused where there is no such frame, or no PyAV; else what PyAV does
  with a damaged file.
  """
  try:
    import av
  except ImportError:
    raise Refused(
      "video without PyAV",
      f"{name} is a video; `pip install jaxpref[video]` installs what decodes "
      "it",
    ) from None
  with av.open(file) as container:
    stream = next(iter(container.streams.video), None)
    if stream is None:
      raise Refused("video without pictures", name)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
      raise Refused(
        "image too large",
        f"{name} has {width} × {height} pixels a frame, and {max_pixels:,} are "
        "allowed",
      )
    start, length = stream.start_time or 0, stream.duration or 0
    if not length and container.duration:  # WebM tells it in another place
      length = container.duration / av.time_base / stream.time_base
    if at and not length:
      raise Refused("video of unknown length", name)
    when = start + int(at * length)
    if at:
      container.seek(when, stream=stream)
    found = None
    for frame in container.decode(stream):
      if found is not None and (frame.pts is None or frame.pts > when):
        break
      found = frame
    if found is None:
      raise Refused("video without pictures", name)
    return found.to_ndarray(format="rgb24")
