"""Answers without another beside them: completions, dialogues, steps."""

from typing import Any

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.pairs import chat_prompt
from jaxpref.data.formats.parts import Values, check_response, response
from jaxpref.types import Record


def completion(id: str, values: Values) -> Record:
  label = _label(values)
  if "completion" not in values:
    return Record(id, "", [response(columns.text(values, "text"), label=label)])
  prompt = values.get("prompt", "")
  if isinstance(prompt, list) or isinstance(values["completion"], list):
    turns = columns.turns(values, "completion")
    check_response(turns, "completion")
    answers = [response(turns, label=label)]
    return Record(id, chat_prompt(values) or [], answers)
  prompt = columns.text(values, "prompt") if "prompt" in values else ""
  content = columns.text(values, "completion")
  return Record(id, prompt, [response(content, label=label)])


def messages(id: str, values: Values) -> Record:
  """The assistant's last turns answer all that is before them."""
  turns = columns.turns(values, "messages")
  end = len(turns)
  while end and turns[end - 1]["role"] == "assistant":
    end -= 1
  if end == len(turns):
    raise Refused(
      "messages do not end with the assistant's turn",
      f"the last one is the {turns[-1]['role']}'s",
    )
  return Record(id, turns[:end], [response(turns[end:])])


def stepwise(id: str, values: Values) -> Record:
  """Steps of one answer, a line each; it is desirable if all of them are."""
  prompt = columns.text(values, "prompt")
  steps = columns.present(values, "completions")
  labels = columns.present(values, "labels")
  for name, found, kind in (
    ("completions", steps, str),
    ("labels", labels, bool),
  ):
    if not isinstance(found, list) or not found:
      raise Refused(f"{name} is not a list", columns.short(found))
    if not all(isinstance(each, kind) for each in found):
      what = "texts" if kind is str else "true or false"
      raise Refused(f"{name} are not all {what}", columns.short(found))
  if len(steps) != len(labels):
    raise Refused(
      "steps and labels differ in number",
      f"there are {len(steps)} completions and {len(labels)} labels",
    )
  whole = columns.text({"completions": "\n".join(steps)}, "completions")
  meta = {"steps": steps, "labels": labels}
  return Record(id, prompt, [response(whole, label=all(labels), meta=meta)])


def _label(values: Values) -> bool | None:
  label: Any = values.get("label")
  if label is None or label in (True, False):  # 1 and 0 as well
    return None if label is None else bool(label)
  raise Refused(
    "label is not true or false",
    f"it is {label!r}; it says whether the completion is desirable",
  )
