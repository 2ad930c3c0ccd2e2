"""What the formats share: records, their checks, and columns of scores."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.types import PICTURES, Comparison, Record, Response

Messages = Sequence[Mapping[str, str]]
Values = Mapping[str, Any]


def pair(
  id: str, prompt: Any, chosen: Any, rejected: Any, scores: Any = ({}, {})
) -> Record:
  """A record whose first response is the better of two."""
  check_differ(chosen, rejected)
  responses = [
    response(content, scores=each)
    for content, each in zip((chosen, rejected), scores, strict=True)
  ]
  return Record(id, prompt, responses, [Comparison(0, 1)])


def response(content: Any, **given: Any) -> Response:
  """A response that holds some text, an image or a video."""
  if isinstance(content, PICTURES):
    return Response(content, **given)
  text = content if isinstance(content, str) else content[-1]["content"]
  if not text.strip():
    raise Refused("empty response", "a response must hold some text")
  return Response(content, **given)


def answer(text: str) -> list[dict[str, str]]:
  """A text as the assistant's only turn."""
  return [{"role": "assistant", "content": text}]


def question(text: str) -> list[dict[str, str]]:
  """A text as the user's only turn."""
  if not text.strip():
    raise Refused("empty prompt", "a comparison needs something to answer")
  return [{"role": "user", "content": text}]


def check_differ(chosen: Any, rejected: Any) -> None:
  if chosen == rejected:
    raise Refused("chosen equals rejected", "such a comparison says nothing")


def check_response(turns: Messages, name: str) -> None:
  roles = [turn["role"] for turn in turns]
  if any(role != "assistant" for role in roles):
    raise Refused(
      "response with other turns",
      f"{name} goes on from the prompt with the turns {', '.join(roles)}; all "
      "of them must be the assistant's",
    )


def structs(values: Values, name: str, least: int = 1) -> list[Values]:
  """A column's list of objects."""
  found = columns.present(values, name)
  if isinstance(found, dict):  # `datasets` keeps some lists so: {key: [...]}
    found = _transposed(found)
  if not isinstance(found, list) or len(found) < least:
    raise Refused(
      f"{name} is not a list of {least} or more",
      f"found {type(found).__name__} {columns.short(found)}",
    )
  for each in found:
    if not isinstance(each, dict):
      raise Refused(
        f"{name} is not a list of objects", f"it holds {columns.short(each)}"
      )
  return found


def scores(values: Values, names: Mapping[str, str]) -> dict[str, float]:
  """Those of the columns that hold a number, by the names they get.

  Raises Refused for one that holds something else.
  """
  found = {new: number(values, name) for new, name in names.items()}
  return {name: value for name, value in found.items() if value is not None}


def number(values: Values, name: str) -> float | None:
  """The number of a column, or of a text in it; None where there is none."""
  value = values.get(name)
  if value is None or value in _NOT_RATED:
    return None
  try:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
      raise ValueError
    if not math.isfinite(found := float(value)):
      raise ValueError
  except (ValueError, OverflowError):
    raise Refused(
      f"{name} is not a number",
      f"found {columns.short(value)}; it must be finite, or null",
    ) from None
  return found


def required(values: Values, name: str) -> float:
  """The number of a column that must have one."""
  columns.present(values, name)
  found = number(values, name)
  if found is None:
    raise Refused(f"{name} is not a number", columns.short(values[name]))
  return found


def rank_score(values: Values) -> dict[str, float]:
  """Scores grow with what they praise; a rank falls."""
  return {"rank": -required(values, "rank")}


def _transposed(lists: Mapping[str, Any]) -> Any:
  columns_ = list(lists.values())
  if not columns_ or not all(isinstance(each, list) for each in columns_):
    return lists
  if len({len(each) for each in columns_}) != 1:
    return lists
  return [dict(zip(lists, row)) for row in zip(*columns_)]


_NOT_RATED = ("N/A", "")
