"""The values of a row's columns: texts and chat messages, or why not."""

from collections.abc import Mapping
from typing import Any

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff",
          ".avif")  # fmt: skip
"""What names of image files end with."""


class Refused(Exception):
  """A row that says nothing usable; `kind` leaves out what was found."""

  def __init__(self, kind: str, detail: str = ""):
    super().__init__(f"{kind}: {detail}" if detail else kind)
    self.kind, self.detail = kind, detail


def text(values: Mapping[str, Any], name: str) -> str:
  """The text of a column.

  Raises Refused where there is none; so does `turns`.
  """
  value = present(values, name)
  if not isinstance(value, str):
    raise Refused(
      f"{name} is not a text",
      f"{_describe(value)}; it must be a text, or in all of the row's columns "
      "a list of messages",
    )
  return _check_unicode(value, name)


def turns(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
  """The chat messages of a column; a text is one turn of the assistant."""
  value = present(values, name)
  if isinstance(value, str):
    value = [{"role": "assistant", "content": value}]
  if not isinstance(value, list) or not value:
    raise Refused(
      f"{name} is not a list of messages",
      f"{_describe(value)}; it must be a text or a list of {{role, content}}",
    )
  return [_turn(each, name) for each in value]


def conversation(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
  """The chat messages of a column that may write them {from, value}."""
  listed = present(values, name)
  if isinstance(listed, list):
    listed = [_renamed(each) for each in listed]
  return turns({name: listed}, name)


def names(values: Mapping[str, Any]) -> str:
  return f"the columns {', '.join(values)}" if values else "no columns"


def short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else text[:37] + "..."


def _renamed(message: Any) -> Any:
  if not isinstance(message, dict) or not {"from", "value"} <= message.keys():
    return message
  role = message["from"]
  known = _ROLES.get(role, role) if isinstance(role, str) else role
  return {"role": known, "content": message["value"]}


def _turn(message: Any, name: str) -> dict[str, Any]:
  if not isinstance(message, dict):
    raise Refused(f"{name} is not a list of messages", _describe(message))
  # Parquet gives every message every key; those not set are null.
  turn = {key: each for key, each in message.items() if each is not None}
  for key in ("role", "content"):
    if not isinstance(turn.get(key), str):
      raise Refused(
        f"{name} has a message without {key}",
        f"its keys are {', '.join(turn)}; role and content must be texts",
      )
    _check_unicode(turn[key], name)
  return turn


def present(values: Mapping[str, Any], name: str) -> Any:
  """The value of a column that is there and not null."""
  if name not in values:
    raise Refused(f"no {name}", f"the row has {names(values)}; {_ALLOWED}")
  if values[name] is None:
    raise Refused(f"{name} is null", _ALLOWED)
  return values[name]


def _check_unicode(text: str, name: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise Refused(
      f"{name} is not Unicode", f"half a surrogate pair at {error.start}"
    ) from None
  return text


def _describe(value: Any) -> str:
  return f"found {type(value).__name__} {short(value)}"


_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_ALLOWED = "it must be there and hold a text or chat messages"
