"""Answers judged by several people: HelpSteer2 and HelpSteer3."""

import re

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.parts import (
  Values,
  answer,
  check_differ,
  question,
  required,
  response,
  scores,
  structs,
)
from jaxpref.types import Comparison, Record

ASPECTS = (
  "helpfulness",
  "correctness",
  "coherence",
  "complexity",
  "verbosity",
)

_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def helpsteer2(id: str, values: Values) -> Record:
  """One answer; rows that follow each other on one prompt are one record."""
  rated = scores(values, {name: name for name in ASPECTS})
  content = answer(columns.text(values, "response"))
  return Record(id, _turns(values), [response(content, scores=rated)])


def helpsteer2_preference(id: str, values: Values) -> Record:
  strength = required(values, "preference_strength")
  contents = [columns.text(values, f"response_{i}") for i in (1, 2)]
  votes = values.get("all_preferences_unprocessed")
  votes = structs(values, "all_preferences_unprocessed", 0) if votes else []
  strengths = [required(each, "strength") for each in votes]
  return _judged(id, _turns(values), contents, strength, strengths)


def helpsteer3(id: str, values: Values) -> Record:
  prompt = columns.turns(values, "context")
  contents = [columns.text(values, f"response{i}") for i in (1, 2)]
  strength = required(values, "overall_preference")
  votes = values.get("individual_preference")
  votes = structs(values, "individual_preference", 0) if votes else []
  strengths = [required(each, "score") for each in votes]
  return _judged(id, prompt, contents, strength, strengths)


def _judged(
  id: str,
  prompt: list[dict[str, str]],
  contents: list[str],
  strength: float,
  votes: list[float],
) -> Record:
  """Below 0 the first is better, above the second, and 0 is a tie.

  The overall strength says which; how sure it is, the share of the people who
  say the same, those that see a tie counted by half.
  """
  check_differ(*contents)
  for each in (strength, *votes):
    if not -3 <= each <= 3:
      raise Refused(
        "preference out of range", f"{each:g} is not between -3 and 3"
      )
  side = 1.0 if strength > 0 else -1.0
  sure = [0.5 if vote == 0 else float(vote * side > 0) for vote in votes]
  preference = max(0.5, sum(sure) / len(sure)) if sure else 1.0
  better, worse = (1, 0) if strength > 0 else (0, 1)
  compared = Comparison(better, worse, preference if strength else 0.5)
  responses = [response(answer(content)) for content in contents]
  meta = {"strength": strength, "votes": votes}
  return Record(id, prompt, responses, [compared], meta)


def _turns(values: Values) -> list[dict[str, str]]:
  """The turns of a prompt, the later ones after HelpSteer2's markers."""
  first, *rest = _TURN.split(columns.text(values, "prompt"))
  turns = question(first)
  for role, content in zip(rest[::2], rest[1::2], strict=True):
    turns.append({"role": role.lower(), "content": content})
  if turns[-1]["role"] != "user":
    raise Refused("prompt does not end with the user's turn")
  return turns
