"""Pairs: prompt, chosen and rejected as texts, transcripts or chat messages."""

from typing import Any

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.parts import (
  Messages,
  Values,
  answer,
  check_differ,
  check_response,
  pair,
  scores,
)
from jaxpref.types import Record

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

HH, HUMAN = "\n\nAssistant:", "\n\nHuman:"

_SCORES = (
  ("overall", "score_chosen", "score_rejected"),
  ("rating", "chosen-rating", "rejected-rating"),
)
"""Names of scores, and the columns that hold them in sets of pairs."""


def explicit(id: str, values: Values) -> Record:
  prompt = columns.text(values, "prompt")
  if not prompt.strip():
    raise Refused("empty prompt", "a comparison needs something to answer")
  chosen = columns.text(values, "chosen")
  rejected = columns.text(values, "rejected")
  return pair(id, prompt, chosen, rejected, pair_scores(values))


def implicit(id: str, values: Values) -> Record:
  chosen = columns.text(values, "chosen")
  rejected = columns.text(values, "rejected")
  check_differ(chosen, rejected)
  end = _implicit_end(chosen, rejected)
  if not end:
    raise Refused(
      "no common prompt",
      f"chosen begins {columns.short(chosen)}, rejected "
      f"{columns.short(rejected)}, and there is no column prompt but "
      f"{columns.names(values)}",
    )
  parts = chosen[:end], chosen[end:], rejected[end:]
  return pair(id, *parts, pair_scores(values))


def hh(id: str, values: Values) -> Record:
  sides = {}
  for name in ("chosen", "rejected"):
    prompt, marker, response = columns.text(values, name).rpartition(HH)
    if not marker:
      raise Refused(f"no {HH!r} in {name}", columns.short(response))
    if HUMAN in response:
      raise Refused(f"{name} does not end with the assistant's turn")
    sides[name] = prompt + marker, response
  (prompt, chosen), (other, rejected) = sides.values()
  if prompt != other:
    raise Refused(
      "prompts differ",
      f"chosen and rejected must agree up to the last {HH!r}, which is after "
      f"{len(prompt)} and {len(other)} characters, and do so for "
      f"{_agreeing(prompt, other)}",
    )
  return pair(id, prompt, chosen, rejected)


def chat(id: str, values: Values) -> Record:
  chosen = columns.turns(values, "chosen")
  rejected = columns.turns(values, "rejected")
  check_differ(chosen, rejected)
  prompt = chat_prompt(values)
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
    check_response(turns, name)
  return pair(id, prompt, *responses, pair_scores(values))


def ultrainteract(id: str, values: Values) -> Record:
  """The last of several turns; the wrong actions before it are the prompt's."""
  prompt = columns.conversation(values, "trajectory")
  if prompt[-1]["role"] != "user":
    raise Refused(
      "trajectory does not end with the user's turn",
      f"its last turn is the {prompt[-1]['role']}'s",
    )
  sides = [answer(columns.text(values, x)) for x in ("chosen", "rejected")]
  return pair(id, prompt, *sides)


def chat_prompt(values: Values) -> list[dict[str, Any]] | None:
  if "prompt" not in values:
    return None
  if isinstance(values["prompt"], str):
    return [{"role": "user", "content": columns.text(values, "prompt")}]
  return columns.turns(values, "prompt")


def pair_scores(values: Values) -> list[dict[str, float]]:
  """The scores of chosen and of rejected, where columns hold them."""
  return [
    scores(values, {name: sides[i] for name, *sides in _SCORES}) for i in (0, 1)
  ]


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


def _leading(chosen: Messages, rejected: Messages) -> list[Any]:
  """The messages both begin with, leaving each at least one."""
  count, most = 0, min(len(chosen), len(rejected)) - 1
  while count < most and chosen[count] == rejected[count]:
    count += 1
  return list(chosen[:count])
