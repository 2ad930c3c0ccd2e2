"""Images that answer a prompt: pairs, ties, votes and ranks of them.

None is decoded here: an image is its bytes, or where its file is. A path that
is not absolute begins in the folder of the file that names it.
"""

from collections.abc import Sequence
import itertools
import math
from typing import Any

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.pairs import pair_scores
from jaxpref.data.formats.parts import (
  Values,
  check_differ,
  pair,
  required,
  response,
  structs,
)
from jaxpref.types import Comparison, Image, Record

_LONGEST = max(map(len, columns.IMAGES))

_LISTS = ("images", "image_path", "image", "file_path", "generations")
_RANKS = ("ranking", "rank")
# Of ImageReward's groups: a rating of each image by each column.
_RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")


def pickapic(id: str, values: Values) -> Record:
  """Two images and who was chosen: 1 and 0, or 0.5 each for a tie.

  Where has_label is false nobody chose, and nothing is compared.
  """
  if "jpg_0" not in values and "image_0_url" in values:
    raise Refused(
      "no jpg_0",
      "the row holds addresses of images, as Pick-a-Pic's variant without "
      "images does; jpg_0 and jpg_1 must hold the images' bytes, as those of "
      "pickapic_v2 do",
    )
  prompt = caption(values, "caption")
  names = ("jpg_0", "jpg_1")
  sides = [picture(columns.present(values, name), name) for name in names]
  check_differ(*sides)
  has_label = values.get("has_label", True)
  if not isinstance(has_label, bool):
    raise Refused("has_label is not true or false", f"it is {has_label!r}")
  labels = [required(values, f"label_{i}") for i in (0, 1) if has_label]
  if has_label and not (
    min(labels) >= 0 and math.isclose(sum(labels), 1.0, abs_tol=1e-6)
  ):
    raise Refused(
      "labels that are no choice",
      f"label_0 and label_1 are {labels[0]:g} and {labels[1]:g}; they must be "
      "1 and 0, 0 and 1, or 0.5 each for a tie",
    )
  responses = [
    response(side, meta=_kept(values, {"model": f"model_{i}"}))
    for i, side in enumerate(sides)
  ]
  compared = [_compared(0, 1, labels[0])] if has_label else []
  return Record(id, prompt, responses, compared)


def hpdv2(id: str, values: Values) -> Record:
  """HPD v2: of the training split which are preferred, 1 for those that are;
  of the test split mean ranks, and what each annotator's ranks prefer."""
  prompt, images = caption(values), _pictures(values)
  count = len(images)
  if values.get("human_preference") is None:
    scores = _ranked(values, count)
    votes = _votes(values, count) if values.get("raw_annotations") else []
    pairs = itertools.combinations(range(count), 2) if votes else ()
    compared = [
      _compared(i, j, sum(_share(v[i], v[j]) for v in votes) / len(votes))
      for i, j in pairs
    ]
    return _listed(id, prompt, images, scores, compared)
  chosen = _numbers(values, "human_preference", count)
  if not set(chosen) <= {0.0, 1.0}:
    raise Refused(
      "human_preference is not 0 or 1",
      columns.short(values["human_preference"]),
    )
  compared = [
    _compared(i, j, 0.5 + (chosen[i] - chosen[j]) / 2)
    for i, j in itertools.combinations(range(count), 2)
    if chosen[i] != chosen[j] or count == 2  # two that are alike are a tie
  ]
  return _listed(id, prompt, images, {}, compared)


def image_ranked(id: str, values: Values) -> Record:
  """A list of images with their ranks, 1 the best, or scores."""
  images = _pictures(values)
  scores = _ranked(values, len(images))
  return _listed(id, caption(values), images, scores)


def image_pair(id: str, values: Values) -> Record:
  prompt = caption(values)
  chosen = picture(columns.present(values, "chosen"), "chosen")
  rejected = picture(columns.present(values, "rejected"), "rejected")
  return pair(id, prompt, chosen, rejected, pair_scores(values))


def sampled(id: str, values: Values) -> Record:
  """An image of `samples.jsonl`, which the stage `sample` writes."""
  image = picture(columns.present(values, "response"), "response")
  return Record(id, caption(values), [response(image)])


def prompts(id: str, values: Values) -> Record:
  """A prompt alone; what else there is, images too, is not looked at."""
  name = (
    "caption" if "prompt" not in values and "caption" in values else "prompt"
  )
  return Record(id, caption(values, name), [])


def detect(values: Values) -> str:
  """The format of this module that a row is in, '' for none."""
  if {"prompt", "seed"} <= values.keys() and _looks_like_picture(
    values.get("response")
  ):
    return "sampled"
  if "prompt" in values and any(name in values for name in _LISTS):
    if any(name in values for name in ("human_preference", "raw_annotations")):
      return "hpdv2"
    if any(name in values for name in (*_RANKS, "scores", *_RATINGS)):
      return "image_ranked"
  sides = [values.get(name) for name in ("chosen", "rejected")]
  return "image_pair" if all(map(_looks_like_picture, sides)) else ""


def picture(value: Any, name: str) -> Image:
  """The image of a column: bytes, a path or URL, or a struct of both."""
  found = value
  if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
    # The path beside bytes is where they came from, on another machine.
    found = value.get("path") if (data := value.get("bytes")) is None else data
  if isinstance(found, bytes) and found:
    return Image(data=found)
  if isinstance(found, str) and found.strip() and "\0" not in found:
    return Image(path=columns.text({name: found}, name))
  raise Refused(
    f"{name} is not an image",
    f"found {type(value).__name__} {columns.short(value)}; it must hold an "
    "encoded image's bytes, its path, or {bytes, path}",
  )


def _looks_like_picture(value: Any) -> bool:
  if isinstance(value, dict):
    return bool(value) and value.keys() <= {"bytes", "path"}
  if isinstance(value, bytes):
    return True
  if not isinstance(value, str):
    return False
  path = value.partition("?")[0] if "://" in value else value
  if not path[-_LONGEST:].lower().endswith(columns.IMAGES):
    return False
  # An answer's last word may be the name of a file.
  return not any(each.isspace() for each in value)


def caption(values: Values, name: str = "prompt") -> str:
  prompt = columns.text(values, name)
  if not prompt.strip():
    raise Refused("empty prompt", "an image is compared for what it shows")
  return prompt


def _pictures(values: Values) -> list[Image]:
  name = next((each for each in _LISTS if each in values), "images")
  found = columns.present(values, name)
  if not isinstance(found, list) or not found:
    raise Refused(
      f"{name} is not a list of images",
      f"found {type(found).__name__} {columns.short(found)}",
    )
  return [picture(each, name) for each in found]


def _numbers(values: Values, name: str, count: int) -> list[float]:
  """A number for each image."""
  found = columns.present(values, name)
  if not isinstance(found, list) or len(found) != count:
    raise Refused(
      f"{name} is not a number for each image",
      f"found {type(found).__name__} {columns.short(found)} for {count} images",
    )
  return [required({name: each}, name) for each in found]


def _scores(values: Values, count: int) -> dict[str, list[float]]:
  """By axis, a score for each image; of ranks minus the rank."""
  found = {}
  rank = next((each for each in _RANKS if values.get(each) is not None), "")
  if rank:
    found["rank"] = [-each for each in _numbers(values, rank, count)]
  scores = values.get("scores")
  if isinstance(scores, dict):
    for axis in scores:
      if scores[axis] is not None:  # Parquet gives every row every axis
        found[axis] = _numbers(scores, axis, count)
  elif scores is not None:
    found["score"] = _numbers(values, "scores", count)
  for name in _RATINGS:
    if isinstance(values.get(name), list):
      found[name.removesuffix("_rating")] = _numbers(values, name, count)
  return found


def _ranked(values: Values, count: int) -> dict[str, list[float]]:
  if found := _scores(values, count):
    return found
  raise Refused(
    "no ranking",
    f"the row has {columns.names(values)}; ranking or scores must tell how "
    "good each image is",
  )


def _votes(values: Values, count: int) -> list[list[float]]:
  """The ranks that each annotator gave."""
  return [
    _numbers(each, "rank", count) for each in structs(values, "raw_annotations")
  ]


def _share(first: float, second: float) -> float:
  """Of a vote, for the first of two ranks; ties count by half."""
  return 0.5 if first == second else float(first < second)


def _compared(first: int, second: int, preference: float) -> Comparison:
  if preference >= 0.5:
    return Comparison(first, second, preference)
  return Comparison(second, first, 1.0 - preference)


def _listed(
  id: str,
  prompt: str,
  images: Sequence[Image],
  scores: dict[str, list[float]],
  compared: Sequence[Comparison] = (),
) -> Record:
  for better, worse, *_ in compared:
    check_differ(images[better], images[worse])
  responses = [
    response(image, scores={axis: scores[axis][i] for axis in scores})
    for i, image in enumerate(images)
  ]
  return Record(id, prompt, responses, compared)


def _kept(values: Values, names: dict[str, str]) -> dict[str, str]:
  found = {new: values.get(name) for new, name in names.items()}
  return {name: each for name, each in found.items() if isinstance(each, str)}
