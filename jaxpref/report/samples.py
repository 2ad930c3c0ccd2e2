"""What the model made, before and after training, prompt by prompt."""

import base64
from collections.abc import Mapping, Sequence
import io
import json
import pathlib
import re
from typing import Any, NamedTuple

from PIL import Image

from jaxpref.report.numbers import number
from jaxpref.report.read import Row, finite, step_of

_FOLDED_FROM = 700  # characters; longer texts are folded
_FOLDED_TO = 320
_SIDE = 256  # pixels of an image on the page
# No other: a text that a model writes must not name a file of its choice.
_NAME = re.compile(r"step_\d{6,}/\d{5,}\.png")


class Text(NamedTuple):
  """A text of the page; `excerpt` stands for it while it is folded."""

  full: str
  excerpt: str = ""


class Sample(NamedTuple):
  text: Text
  image: str  # as a data URI; '' for a text
  scores: Mapping[str, str]


class Prompt(NamedTuple):
  """A prompt, and by heading what the model answered."""

  text: Text
  columns: Sequence[tuple[str, Sequence[Sample]]]


def prompts(samples: Sequence[Row], folder: pathlib.Path) -> list[Prompt]:
  """The prompts in their order, with answers before and after training.

  Samples of other steps are left out. A response that names a PNG below
  `folder` is that image.
  """
  last = max((step_of(sample) for sample in samples), default=0)
  headings = {0: "Before training"}
  if last:
    headings[last] = f"After {last:,} steps"
  answers: dict[str, dict[int, list[Sample]]] = {}
  for sample in samples:
    prompt, step = plain(sample.get("prompt")), step_of(sample)
    columns = answers.setdefault(prompt, {key: [] for key in headings})
    if step in columns:
      response = plain(sample.get("response"))
      image, scores = _image(folder, response), _scores(sample.get("scores"))
      columns[step].append(Sample(fold(response), image, scores))
  return [
    Prompt(fold(prompt), [(headings[s], found) for s, found in columns.items()])
    for prompt, columns in answers.items()
  ]


def plain(content: Any) -> str:
  """A text, or chat messages as one."""
  if isinstance(content, str):
    return content.strip()
  if isinstance(content, list) and all(isinstance(m, Mapping) for m in content):
    turns = (f"{m.get('role', '')}: {m.get('content', '')}" for m in content)
    return "\n\n".join(turns)
  return "" if content is None else json.dumps(content, ensure_ascii=False)


def fold(text: str) -> Text:
  if len(text) < _FOLDED_FROM:
    return Text(text)
  return Text(text, text[:_FOLDED_TO].rstrip() + " …")


def _image(folder: pathlib.Path, name: str) -> str:
  """A PNG as a small data URI; '' for what is none."""
  if not _NAME.fullmatch(name):
    return ""
  try:
    with Image.open(folder / name) as image:
      image.thumbnail((_SIDE, _SIDE))
      times = max(1, _SIDE // max(image.size))  # pixels stay squares
      size = times * image.width, times * image.height
      small = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
      small.save(out := io.BytesIO(), "WEBP", quality=90)
  except OSError:
    return ""
  return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _scores(given: Any) -> dict[str, str]:
  if not isinstance(given, Mapping):
    return {}
  values = {str(name): finite(score) for name, score in given.items()}
  return {
    name: "–" if value is None else number(value)
    for name, value in values.items()
  }
