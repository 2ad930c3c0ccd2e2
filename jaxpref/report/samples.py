"""Texts the model wrote, before and after training, prompt by prompt."""

from collections.abc import Mapping, Sequence
import json
from typing import Any, NamedTuple

from jaxpref.report.numbers import number
from jaxpref.report.read import Row, finite, step_of

_FOLDED_FROM = 700  # characters; longer texts are folded
_FOLDED_TO = 320


class Text(NamedTuple):
  """A text of the page; `excerpt` stands for it while it is folded."""

  full: str
  excerpt: str = ""


class Sample(NamedTuple):
  text: Text
  scores: Mapping[str, str]


class Prompt(NamedTuple):
  """A prompt, and by heading what the model answered."""

  text: Text
  columns: Sequence[tuple[str, Sequence[Sample]]]


def prompts(samples: Sequence[Row]) -> list[Prompt]:
  """The prompts in their order, with answers before and after training.

  Samples of other steps are left out.
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
      text = fold(plain(sample.get("response")))
      columns[step].append(Sample(text, _scores(sample.get("scores"))))
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


def _scores(given: Any) -> dict[str, str]:
  if not isinstance(given, Mapping):
    return {}
  values = {str(name): finite(score) for name, score in given.items()}
  return {
    name: "–" if value is None else number(value)
    for name, value in values.items()
  }
