"""Trees of attempts at a task, as UltraInteract grows them."""

from collections.abc import Iterator
import itertools
from typing import Any

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.parts import (
  Values,
  answer,
  check_differ,
  question,
  response,
  structs,
)
from jaxpref.types import Comparison, Record


def ultrainteract_sft(id: str, values: Values) -> Record:
  """One correct action; the turns before it stand in the instruction."""
  prompt = question(columns.text(values, "instruction"))
  content = answer(columns.text(values, "response"))
  return Record(id, prompt, [response(content)], meta=_task(values))


def tree(id: str, values: Values) -> list[Record]:
  """A record of each node's next actions, those nearer to the root first.

  Each correct action is better than each incorrect one beside it. After an
  incorrect one the prompt goes on with it and with what was told of it.

  Reference: Yuan et al. 2024, section 2 (https://arxiv.org/abs/2404.02078).
  There a node has one action of each kind; here, any number.
  """
  prompt = question(columns.text(values, "instruction"))
  records, nodes = [], [(prompt, values)]
  for prompt, node in nodes:  # which grows
    actions = structs(node, "actions")
    records.append(_compared(id, prompt, actions, _task(values)))
    nodes += _expanded(prompt, actions)
  return records


def _compared(
  id: str, prompt: Any, actions: list[Values], meta: dict[str, str]
) -> Record:
  labels = [_correct(each) for each in actions]
  texts = [columns.text(each, "action") for each in actions]
  responses = [
    response(answer(text), label=label)
    for text, label in zip(texts, labels, strict=True)
  ]
  numbers = range(len(actions))
  pairs = [
    Comparison(better, worse)
    for better, worse in itertools.product(numbers, numbers)
    if labels[better] and not labels[worse]
  ]
  for better, worse, *_ in pairs:
    check_differ(texts[better], texts[worse])
  return Record(id, prompt, responses, pairs, meta)


def _expanded(
  prompt: list[Any], actions: list[Values]
) -> Iterator[tuple[list[Any], Values]]:
  """Of each action that others follow, the prompt of those, and itself."""
  for each in actions:
    if not each.get("actions"):
      continue
    if each["correct"]:
      raise Refused(
        "tree goes on from a correct action",
        f"{columns.short(each['action'])} has actions after it; they must "
        "follow an incorrect one",
      )
    told = {"role": "user", "content": _told(each)}
    yield [*prompt, *answer(each["action"]), told], each


def _told(action: Values) -> str:
  """What the environment, and then the critic, say of an action."""
  given = [x for x in ("observation", "critique") if action.get(x) is not None]
  told = "\n".join(columns.text(action, name) for name in given)
  if not told.strip():
    raise Refused(
      "no observation",
      f"{columns.short(action['action'])} has actions after it, so that an "
      "observation or a critique must tell why it is incorrect",
    )
  return told


def _correct(action: Values) -> bool:
  found = columns.present(action, "correct")
  if not isinstance(found, bool):
    raise Refused("correct is not true or false", f"it is {found!r}")
  return found


def _task(values: Values) -> dict[str, str]:
  found = {name: values.get(name) for name in ("task", "dataset")}
  return {name: each for name, each in found.items() if isinstance(each, str)}
