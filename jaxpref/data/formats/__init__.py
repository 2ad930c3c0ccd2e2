"""Rows to records: every schema of preference data, a small function each.

`data.format` names one of `FORMATS`, or 'auto' to tell it from each row's
columns and values. A reader keeps what the row says: ratings, ranks, ties and
votes; comparisons of rated answers are made later, by `jaxpref.pair`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import posixpath
from typing import Any

from jaxpref import config
from jaxpref.data import columns, read
from jaxpref.data.columns import Refused
from jaxpref.data.formats import (
  annotated,
  images,
  own,
  pairs,
  ranked,
  single,
  trees,
  videos,
)
from jaxpref.errors import UserError
from jaxpref.types import PICTURES, Image, Record, Response, Video

__all__ = [
  "FORMATS",
  "Format",
  "Refused",
  "check_format",
  "detect",
  "explain",
  "to_records",
]


@dataclasses.dataclass(frozen=True)
class Format:
  """How one schema's rows are known and read."""

  says: str
  columns: tuple[str, ...]  # that a row has, and may have others
  parse: Callable[[str, Mapping[str, Any]], Record | Sequence[Record]]
  # Whether the columns alone tell it; else `detect` looks at their values.
  named: bool = True
  joins: bool = False  # rows in a row that share their prompt are one record


_PAIR = ("chosen", "rejected")

FORMATS = {
  "explicit": Format(
    "columns prompt, chosen and rejected hold texts",
    ("prompt", *_PAIR), pairs.explicit, named=False,
  ),
  "implicit": Format(
    "columns chosen and rejected hold texts; the prompt is their "
    "common beginning, back to the last turn marker, else to whitespace",
    _PAIR, pairs.implicit, named=False,
  ),
  "hh": Format(
    "columns chosen and rejected hold transcripts; the prompt ends with "
    "the last '\\n\\nAssistant:'",
    _PAIR, pairs.hh, named=False,
  ),
  "chat": Format(
    "columns chosen and rejected, with or without prompt, hold chat "
    "messages {role, content}",
    _PAIR, pairs.chat, named=False,
  ),
  "completion": Format(
    "column completion, with or without prompt, or text alone, "
    "holds one answer without a comparison; label, where there is one, says "
    "whether it is desirable",
    ("completion",), single.completion, named=False,
  ),
  "ultrainteract": Format(
    "column trajectory holds turns {from, value}, of which the last is the "
    "user's; chosen and rejected are the next actions",
    ("trajectory", *_PAIR), pairs.ultrainteract,
  ),
  "ultrafeedback": Format(
    "column completions holds answers to instruction, each with ratings",
    ("instruction", "completions"), ranked.ultrafeedback,
  ),
  "nectar": Format(
    "column answers holds answers to a transcript, each with its rank",
    ("prompt", "answers"), ranked.nectar,
  ),
  "nemo": Format(
    "column completions holds completions of context, each with its rank, 0 "
    "the best",
    ("context", "completions"), ranked.nemo,
  ),
  "ultrainteract_sft": Format(
    "column response is a correct action of task, and instruction all that "
    "was said before it",
    ("task", "dataset", "instruction", "response"), trees.ultrainteract_sft,
  ),
  "tree": Format(
    "column actions holds actions {action, correct, observation, critique, "
    "actions} for instruction; those after an incorrect one are a try again",
    ("instruction", "actions"), trees.tree,
  ),
  "helpsteer3": Format(
    "columns response1 and response2 answer context; overall_preference says "
    "which is better, 0 for a tie, and individual_preference who thinks so",
    ("context", "response1", "response2", "overall_preference"),
    annotated.helpsteer3,
  ),
  "helpsteer2_preference": Format(
    "columns response_1 and response_2 answer prompt; preference_strength "
    "says which is better, 0 for a tie",
    ("prompt", "response_1", "response_2", "preference_strength"),
    annotated.helpsteer2_preference,
  ),
  "helpsteer2": Format(
    "column response answers prompt and has ratings; rows that follow each "
    "other on one prompt are one example",
    ("prompt", "response", *annotated.ASPECTS), annotated.helpsteer2,
    joins=True,
  ),
  "stepwise": Format(
    "column completions holds the steps of one answer, and labels whether "
    "each is right",
    ("prompt", "completions", "labels"), single.stepwise,
  ),
  "messages": Format(
    "column messages holds a conversation that ends with the assistant's turn",
    ("messages",), single.messages, named=False,
  ),
  "record": Format(
    "column responses holds answers {content, scores, label}, and comparisons "
    "which are better",
    ("prompt", "responses"), own.record,
  ),
  "pickapic": Format(
    "columns jpg_0 and jpg_1 hold images of caption; label_0 and label_1 say "
    "which was chosen, 0.5 each for a tie",
    ("caption", "label_0", "label_1"), images.pickapic,
  ),
  "hpdv2": Format(
    "column image_path, or file_path, lists images of prompt; "
    "human_preference says which are preferred, or rank and raw_annotations "
    "in which order",
    ("prompt", "image_path", "human_preference"), images.hpdv2, named=False,
  ),
  "image_ranked": Format(
    "column images, or image_path, lists images of prompt, and ranking or "
    "scores how good each is",
    ("prompt", "images", "ranking"), images.image_ranked, named=False,
  ),
  "videofeedback": Format(
    "column images lists frames of a video of text prompt, which is rated; "
    "rows that follow each other on one prompt are one example",
    ("text prompt", "images"), videos.videofeedback, joins=True,
  ),
  "videoalign": Format(
    "columns path_A and path_B hold videos of prompt; VQ, MQ, TA and Overall "
    "say which is better: A, B or same",
    ("prompt", "path_A", "path_B"), videos.videoalign,
  ),
  "sampled": Format(
    "column response names an image that was made of prompt by seed; rows that "
    "follow each other on one prompt are one example",
    ("prompt", "response", "seed"), images.sampled, named=False, joins=True,
  ),
  "image_pair": Format(
    "columns chosen and rejected hold images of prompt",
    ("prompt", *_PAIR), images.image_pair, named=False,
  ),
  "prompts": Format(
    "column prompt, or caption, is what training samples images of",
    ("prompt",), images.prompts, named=False,
  ),
}  # fmt: skip


def check_format(name: str, *, prompts: bool = False) -> None:
  """Raises UserError unless `name` is 'auto' or one of FORMATS.

  Args:
    name: of `data.format`.
    prompts: whether prompts will do, without answers.
  """
  if name not in (known := ("auto", *FORMATS)):
    raise UserError(
      f"config.data.format is {name!r}; it must be one of {', '.join(known)}. "
      f"{config.nearest(name, known)}"
    )
  if name == "prompts" and not prompts:
    raise UserError(
      f"config.data.format is 'prompts', and {_ALONE}. Set it to auto, or to "
      "what the rows hold; or train on sampled images by config.loss.name=pso."
    )


def detect(values: Mapping[str, Any], *, prompts: bool = False) -> str:
  """The format of a row, from its columns and their values.

  Args:
    values: by column.
    prompts: whether prompts will do, without answers.

  Raises Refused where the columns are of no known format.
  """
  if prompts and "caption" in values and "jpg_0" not in values:
    return "prompts"  # Pick-a-Pic's, which are published without images too
  if name := _named(tuple(values)):
    return name
  if name := images.detect(values):
    return name
  if "chosen" in values or "rejected" in values:
    return _detect_pair(values)
  if "completion" in values or "text" in values:
    return "completion"
  if "messages" in values:
    return "messages"
  if prompts and "prompt" in values:
    return "prompts"
  raise Refused("unknown columns", _what_lacks(values))


@functools.cache  # rows of a file have the same columns, or nearly
def _named(columns: tuple[str, ...]) -> str:
  """The format that the columns alone tell; '' for none."""
  for name, known in FORMATS.items():
    if known.named and {*known.columns} <= {*columns}:
      return name
  return ""


def to_records(row: read.Row, name: str) -> Sequence[Record]:
  """The record of a row in the format `name`, one of FORMATS; a tree's several.

  Raises Refused, saying what was found and what is allowed.
  """
  try:
    found = FORMATS[name].parse(row.id, row.values)
  except RecursionError:
    raise Refused("nested too deeply") from None
  records = [found] if isinstance(found, Record) else found
  return [_with_places(record, row) for record in records]


def explain(counts: Mapping[str, int]) -> str:
  """One sentence: which formats the rows were found to be in, and why."""
  told = [
    f"{name} ({count} rows: {FORMATS[name].says})"
    for name, count in Counter(counts).most_common()
  ]
  return f"data.format is {' and '.join(told) or 'unknown'}."


def _with_places(record: Record, row: read.Row) -> Record:
  seen = (each.content for each in record.responses)
  if not any(isinstance(each, PICTURES) for each in seen):
    return record
  placed = [_placed(each, row) for each in record.responses]
  return dataclasses.replace(record, responses=placed)


def _placed(response: Response, row: read.Row) -> Response:
  """With paths of images seen from anywhere, not from the data's folder."""
  content = response.content
  if isinstance(content, Image):
    return dataclasses.replace(response, content=_reached(content, row))
  if isinstance(content, Video):
    frames = tuple(_reached(frame, row) for frame in content.frames)
    return dataclasses.replace(response, content=Video(frames))
  return response


def _reached(image: Image, row: read.Row) -> Image:
  if not image.path or "://" in image.path:
    return image
  if row.members is not None:
    return _member(image, row, row.members)
  placed = posixpath.join(row.folder, image.path)
  return dataclasses.replace(image, path=placed)


def _member(image: Image, row: read.Row, members: Mapping[str, bytes]) -> Image:
  """The image that stands beside the row in its archive."""
  path = image.path
  name = path.removeprefix(f"{row.key}.").lower()
  if name not in members:
    raise Refused(
      "image not in its sample",
      f"{columns.short(path)} is none of the sample's images, "
      f"{columns.short(', '.join(members) or 'of which there are none')}; a "
      "column names one by what follows the sample's key, such as 0.png",
    )
  return Image(members[name], f"{row.file}/{row.key}.{name}", image.at)


def _detect_pair(values: Mapping[str, Any]) -> str:
  parts = [values.get(name) for name in _PAIR]
  if any(isinstance(part, list) for part in (*parts, values.get("prompt"))):
    return "chat"
  if "prompt" in values:
    return "explicit"
  texts = [part for part in parts if isinstance(part, str)]
  return "hh" if any(pairs.HH in text for text in texts) else "implicit"


def _what_lacks(values: Mapping[str, Any]) -> str:
  """The nearest formats, and which column each would need beside these."""
  missing = {
    name: lacks
    for name, known in FORMATS.items()
    if (lacks := [each for each in known.columns if each not in values])
  }
  shared = {
    name: len(FORMATS[name].columns) - len(lacks)
    for name, lacks in missing.items()
  }
  nearest = sorted(
    missing, key=lambda name: (-shared[name], len(missing[name]))
  )
  told = [f"{name} lacks {', '.join(missing[name])}" for name in nearest[:4]]
  if list(values) == ["prompt"]:
    told = [f"{_ALONE}; sample some first"]
  elif "caption" in values:
    told.append(_ALONE)
  return (
    f"{columns.names(values)}; {'; '.join(told)}. config.data.format can be "
    f"{', '.join(FORMATS)}"
  )


_ALONE = "prompts alone hold no answer to learn from"
