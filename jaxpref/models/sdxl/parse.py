"""config.json of diffusers and transformers, into frozen dataclasses."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any, TypeVar, cast

from beartype.door import is_bearable

from jaxpref.errors import UserError

C = TypeVar("C")


def parse(
  cls: type[C],
  given: Mapping[str, Any],
  *,
  source: str,
  refused: Mapping[str, tuple[Any, ...]],
) -> C:
  """The config of `cls`; lists become tuples, what is absent its default.

  Args:
    cls: a dataclass; a field `given` gets the whole of the JSON.
    given: the JSON object.
    source: its file, for messages.
    refused: keys that would change the outputs, and the values that do not.

  Raises UserError for a value of another type, and for one that cannot be
  honoured.
  """
  for key, allowed in refused.items():
    if key in given and _frozen(given[key]) not in allowed:
      raise UserError(
        f"{source}: {key} is {given[key]!r}, which is not supported; it must "
        f"be {' or '.join(repr(value) for value in allowed)}. Choose a model "
        "with that."
      )
  values: dict[str, Any] = {}
  for field in dataclasses.fields(cls):  # type: ignore[arg-type]
    if field.name in given and field.name != "given":
      value = _frozen(given[field.name])
      if field.type is float and type(value) is int:
        value = float(value)
      if not is_bearable(value, cast(Any, field.type)):
        raise UserError(
          f"{source}: {field.name} is {given[field.name]!r}; it must be "
          f"{getattr(field.type, '__name__', field.type)}. Take the file of "
          "the original model."
        )
      values[field.name] = value
  values["given"] = json.dumps(given)
  return cls(**values)


def spread(value: Any, count: int, name: str) -> tuple[Any, ...]:
  """One value a level: those given, or the same for all."""
  if not isinstance(value, tuple):
    return (value,) * count
  if len(value) != count:
    raise UserError(
      f"config.json: {name} is {list(value)}, and the model has {count} "
      "levels; give one value, or as many. Take the file of the original model."
    )
  return value


def _frozen(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(_frozen(each) for each in value)
  return value
