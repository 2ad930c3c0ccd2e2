"""Values of config files and command lines as what their keys must hold."""

import ast
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from jaxpref.errors import UserError


class Override(str):
  """The text of a command-line override, read by the type of its key."""


def cast(hint: Any, value: Any, key: str, source: str) -> Any:
  """The value as the type of its key.

  Args:
    hint: the type, or `tuple[T, ...]`, or `Mapping[...]`.
    value: as a config file gives it, or an Override.
    key: for messages, without "config.".
    source: where it was given, for messages.

  Raises UserError for a value of another type.
  """
  if hint is str and _is_scalar(value):
    value = _text(value)
  if get_args(hint) == (str, str):
    value = plain(value) if isinstance(value, Override) else value
    if isinstance(value, Mapping):
      return {x: cast(str, y, f"{key}.{x}", source) for x, y in value.items()}
  value = plain(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if get_origin(hint) is tuple:
    value = (value,) if isinstance(value, str) else value
    item = get_args(hint)[0]
    if isinstance(value, (list, tuple)):
      return tuple(cast(item, each, key, source) for each in value)
  kind = get_origin(hint) or hint
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    raise UserError(
      f"{source}: config.{key} is {value!r}; it must be "
      f"{names.get(kind, getattr(kind, '__name__', kind))}."
    )
  return value


def plain(value: Any) -> Any:
  """Overrides as the numbers, lists ... that they spell."""
  if isinstance(value, Mapping):
    return {key: plain(item) for key, item in value.items()}
  return _literal(value) if isinstance(value, Override) else value


def _literal(text: str) -> Any:
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _text(value: Any) -> str:
  """A folder called 2024 stays text; 'quoted' text loses its quotes."""
  found = plain(value)
  return found if isinstance(found, str) else str(value)


def _is_scalar(value: Any) -> bool:
  return not isinstance(value, (Mapping, list, tuple))
