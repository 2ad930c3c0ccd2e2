"""Rows to records: pairs, transcripts, chat messages and single completions.

`data.format` names one of `FORMATS`, or 'auto' to tell it from each row's
columns and values.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxpref import config
from jaxpref.data import columns, read
from jaxpref.data.columns import Refused
from jaxpref.errors import UserError
from jaxpref.types import Comparison, Record, Response

FORMATS = {
  "explicit": "columns prompt, chosen and rejected hold texts",
  "implicit": "columns chosen and rejected hold texts; the prompt is their "
  "common beginning, back to the last turn marker, else to whitespace",
  "hh": "columns chosen and rejected hold transcripts; the prompt ends with "
  "the last '\\n\\nAssistant:'",
  "chat": "columns chosen and rejected, with or without prompt, hold chat "
  "messages {role, content}",
  "completion": "column completion, with or without prompt, or text alone, "
  "holds one answer without a comparison; label, where there is one, says "
  "whether it is desirable",
}

TURN_MARKERS = (
  "\n\nAssistant:",
  "<|im_start|>assistant\n",
  "<|start_header_id|>assistant<|end_header_id|>\n\n",
  "<start_of_turn>model\n",
  "<|assistant|>\n",
  "[/INST]",
  "### Response:\n",
)
"""What an implicit prompt may end with, the answer standing next."""

_HH, _HUMAN = "\n\nAssistant:", "\n\nHuman:"

Messages = Sequence[Mapping[str, str]]


def check_format(name: str) -> None:
  """Raises UserError unless `name` is 'auto' or one of FORMATS."""
  if name not in (known := ("auto", *FORMATS)):
    raise UserError(
      f"config.data.format is {name!r}; it must be one of {', '.join(known)}. "
      f"{config.nearest(name, known)}"
    )


def detect(values: Mapping[str, Any]) -> str:
  """The format of a row, from its columns and their values.

  Raises Refused where the columns are of no known format.
  """
  if "chosen" in values or "rejected" in values:
    parts = [values.get(name) for name in ("chosen", "rejected")]
    if any(isinstance(part, list) for part in (*parts, values.get("prompt"))):
      return "chat"
    if "prompt" in values:
      return "explicit"
    texts = [part for part in parts if isinstance(part, str)]
    return "hh" if any(_HH in text for text in texts) else "implicit"
  if "completion" in values or "text" in values:
    return "completion"
  raise Refused(
    "unknown columns",
    f"{columns.names(values)}; known are prompt, chosen and rejected (prompt "
    "may be left out), or prompt and completion, or text",
  )


def to_record(row: read.Row, name: str) -> Record:
  """The record of a row that is in the format `name`, one of FORMATS.

  Raises Refused, saying what was found and what is allowed.
  """
  return _PARSERS[name](row.id, row.values)


def explain(counts: Mapping[str, int]) -> str:
  """One sentence: which formats the rows were found to be in, and why."""
  told = [
    f"{name} ({count} rows: {FORMATS[name]})"
    for name, count in Counter(counts).most_common()
  ]
  return f"data.format is {' and '.join(told) or 'unknown'}."


def _explicit(id: str, values: Mapping[str, Any]) -> Record:
  prompt = columns.text(values, "prompt")
  if not prompt.strip():
    raise Refused("empty prompt", "a comparison needs something to answer")
  chosen = columns.text(values, "chosen")
  return _pair(id, prompt, chosen, columns.text(values, "rejected"))


def _implicit(id: str, values: Mapping[str, Any]) -> Record:
  chosen = columns.text(values, "chosen")
  rejected = columns.text(values, "rejected")
  _check_differ(chosen, rejected)
  end = _implicit_end(chosen, rejected)
  if not end:
    raise Refused(
      "no common prompt",
      f"chosen begins {columns.short(chosen)}, rejected "
      f"{columns.short(rejected)}, and there is no column prompt but "
      f"{columns.names(values)}",
    )
  return _pair(id, chosen[:end], chosen[end:], rejected[end:])


def _implicit_end(chosen: str, rejected: str) -> int:
  common = chosen[: _agreeing(chosen, rejected)]
  ends = [
    common.rfind(marker) + len(marker)
    for marker in TURN_MARKERS
    if marker in common
  ]
  if ends:
    return max(ends)
  # Both responses then begin with whitespace, as their tokens do.
  end = len(common)
  while end and not (
    chosen[end:][:1].isspace() and rejected[end:][:1].isspace()
  ):
    end -= 1
  return end


def _agreeing(one: str, other: str) -> int:
  """How many first characters are the same."""
  pairs = enumerate(zip(one, other))
  shortest = min(len(one), len(other))
  return next((i for i, (a, b) in pairs if a != b), shortest)


def _hh(id: str, values: Mapping[str, Any]) -> Record:
  sides = {}
  for name in ("chosen", "rejected"):
    prompt, marker, response = columns.text(values, name).rpartition(_HH)
    if not marker:
      raise Refused(f"no {_HH!r} in {name}", columns.short(response))
    if _HUMAN in response:
      raise Refused(f"{name} does not end with the assistant's turn")
    sides[name] = prompt + marker, response
  (prompt, chosen), (other, rejected) = sides.values()
  if prompt != other:
    raise Refused(
      "prompts differ",
      f"chosen and rejected must agree up to the last {_HH!r}, which is after "
      f"{len(prompt)} and {len(other)} characters, and do so for "
      f"{_agreeing(prompt, other)}",
    )
  return _pair(id, prompt, chosen, rejected)


def _chat(id: str, values: Mapping[str, Any]) -> Record:
  chosen = columns.turns(values, "chosen")
  rejected = columns.turns(values, "rejected")
  _check_differ(chosen, rejected)
  prompt = _chat_prompt(values)
  shared = _leading(chosen, rejected)
  if prompt is None:
    prompt = shared
  elif isinstance(values["prompt"], str) and prompt[0] in shared:
    prompt = shared  # UltraFeedback: the prompt again, as the first turns
  elif shared[: len(prompt)] == prompt:
    prompt = shared
  else:
    shared = []
  if not prompt:
    raise Refused(
      "no common prompt",
      "chosen and rejected share no leading message, and there is no prompt",
    )
  responses = chosen[len(shared) :], rejected[len(shared) :]
  for name, turns in zip(("chosen", "rejected"), responses, strict=True):
    _check_response(turns, name)
  return _pair(id, prompt, *responses)


def _chat_prompt(values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
  if "prompt" not in values:
    return None
  if isinstance(values["prompt"], str):
    return [{"role": "user", "content": columns.text(values, "prompt")}]
  return columns.turns(values, "prompt")


def _leading(chosen: Messages, rejected: Messages) -> list[Any]:
  """The messages both begin with, leaving each at least one."""
  count, most = 0, min(len(chosen), len(rejected)) - 1
  while count < most and chosen[count] == rejected[count]:
    count += 1
  return list(chosen[:count])


def _completion(id: str, values: Mapping[str, Any]) -> Record:
  label = _label(values)
  if "completion" not in values:
    return _record(id, "", [columns.text(values, "text")], label=label)
  prompt = values.get("prompt", "")
  if isinstance(prompt, list) or isinstance(values["completion"], list):
    turns = columns.turns(values, "completion")
    _check_response(turns, "completion")
    return _record(id, _chat_prompt(values) or [], [turns], label=label)
  prompt = columns.text(values, "prompt") if "prompt" in values else ""
  content = columns.text(values, "completion")
  return _record(id, prompt, [content], label=label)


def _label(values: Mapping[str, Any]) -> bool | None:
  label = values.get("label")
  if label is None or label in (True, False):  # 1 and 0 as well
    return None if label is None else bool(label)
  raise Refused(
    "label is not true or false",
    f"it is {label!r}; it says whether the completion is desirable",
  )


def _pair(id: str, prompt: Any, chosen: Any, rejected: Any) -> Record:
  _check_differ(chosen, rejected)
  return _record(id, prompt, [chosen, rejected], [Comparison(0, 1)])


def _record(
  id: str,
  prompt: Any,
  contents: list[Any],
  comparisons: Any = (),
  label: bool | None = None,
) -> Record:
  for content in contents:
    texts = [content] if isinstance(content, str) else [content[-1]["content"]]
    if not any(text.strip() for text in texts):
      raise Refused("empty response", "a response must hold some text")
  responses = [Response(each, label=label) for each in contents]
  return Record(id, prompt, responses, comparisons)


def _check_differ(chosen: Any, rejected: Any) -> None:
  if chosen == rejected:
    raise Refused("chosen equals rejected", "such a comparison says nothing")


def _check_response(turns: Messages, name: str) -> None:
  roles = [turn["role"] for turn in turns]
  if any(role != "assistant" for role in roles):
    raise Refused(
      "response with other turns",
      f"{name} goes on from the prompt with the turns {', '.join(roles)}; all "
      "of them must be the assistant's",
    )


_PARSERS: dict[str, Callable[[str, Mapping[str, Any]], Record]] = {
  "explicit": _explicit,
  "implicit": _implicit,
  "hh": _hh,
  "chat": _chat,
  "completion": _completion,
}
