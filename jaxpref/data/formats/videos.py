"""Videos that answer a prompt: frames, ratings and preferences of them.

None is decoded here. A video is frames in files of their own, or moments of one
file.
"""

from collections.abc import Mapping

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.images import caption, picture
from jaxpref.data.formats.parts import (
  Values,
  check_differ,
  number,
  response,
  scores,
)
from jaxpref.types import Comparison, Image, Record, Video

MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a video in one file those that are looked at: 0 its first frame."""

_RATED = {
  name.replace(" ", "_").replace("-", "_"): name
  for name in (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
  )
}
_AXES = ("VQ", "MQ", "TA")
_SIDES = ("A", "B")


def videofeedback(id: str, values: Values) -> Record:
  """One video, rated on five axes; `images` lists the files of its frames.

  Rows that follow each other on one prompt are one record.
  """
  frames = columns.present(values, "images")
  if not isinstance(frames, list) or not frames:
    raise Refused(
      "images is not a list of frames",
      f"found {type(frames).__name__} {columns.short(frames)}",
    )
  video = Video(tuple(picture(frame, "images") for frame in frames))
  rated = response(video, scores=scores(values, _RATED))
  return Record(id, caption(values, "text prompt"), [rated])


def videoalign(id: str, values: Values) -> Record:
  """Two videos, and which is better on each axis and overall: A, B or same.

  On an axis the better one scores 1 and the other 0, both 0.5 where they are
  the same; MOS_A_VQ and the like, where there are any, are scores by the name
  MOS_VQ. Overall may be missing, and then nothing is compared but by scores.
  """
  sides = [_file(values, f"path_{side}") for side in _SIDES]
  check_differ(*sides)
  rated = {axis: _share(values, axis) for axis in _AXES}
  found: list[dict[str, float]] = [
    {axis: each[i] for axis, each in rated.items() if each} for i in (0, 1)
  ]
  for i, side in enumerate(_SIDES):
    found[i] |= _opinions(values, side)
  compared = []
  if overall := _share(values, "Overall"):
    better = int(overall[1] > overall[0])
    compared = [Comparison(better, 1 - better, overall[better])]
  responses = [
    response(side, scores=each, meta=_model(values, name))
    for side, each, name in zip(sides, found, _SIDES, strict=True)
  ]
  return Record(id, caption(values), responses, compared)


def _file(values: Values, name: str) -> Video:
  whole = picture(columns.present(values, name), name)
  return Video(tuple(Image(whole.data, whole.path, at=at) for at in MOMENTS))


def _share(values: Values, axis: str) -> tuple[float, float] | None:
  """What each of two gets of one; None where nobody said, or wrongly."""
  said = values.get(axis)
  if said is None or said in ("", "invalid"):
    return None
  if said not in (*_SIDES, "same"):
    raise Refused(
      f"{axis} is no preference",
      f"found {columns.short(said)}; it must be A, B, same or invalid",
    )
  first = 0.5 if said == "same" else float(said == "A")
  return first, 1.0 - first


def _opinions(values: Values, side: str) -> Mapping[str, float]:
  found = {f"MOS_{x}": number(values, f"MOS_{side}_{x}") for x in _AXES}
  return {name: each for name, each in found.items() if each is not None}


def _model(values: Values, side: str) -> Mapping[str, str]:
  model = values.get(f"{side}_model")
  return {"model": model} if isinstance(model, str) else {}
