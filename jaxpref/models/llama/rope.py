"""RoPE's keys in config.json, of transformers 4 and 5, both ways."""

from collections.abc import Mapping
from typing import Any

from jaxpref.errors import UserError
from jaxpref.ops.rope import ROPE_FIELDS, Rope


def read_rope(values: Mapping[str, Any], limit: int, source: str) -> Rope:
  """Of `rope_parameters` (new), or `rope_theta` and `rope_scaling` (old).

  Args:
    values: the keys of a config.json.
    limit: `max_position_embeddings`, which llama3's original one may be.
    source: what errors begin with.

  Raises UserError for a type that is not supported, and for wrong keys.
  """
  key = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
  given = values.get(key) or {}
  if isinstance(given, Rope):
    return given
  rope = dict(given)
  old = rope.pop("type", "default")
  kind = rope.pop("rope_type", old)
  theta = rope.pop("rope_theta", None) or values.get("rope_theta") or 10000.0
  if kind not in ROPE_FIELDS:
    raise UserError(
      f"{source}: {key}.rope_type is {kind!r}; supported are "
      f"{', '.join(ROPE_FIELDS)}. Choose a model with one of them."
    )
  if kind == "llama3":
    rope.setdefault("original_max_position_embeddings", limit)
  missing = [name for name in ROPE_FIELDS[kind] if rope.get(name) is None]
  # `finetuned` is a remark of some Llama 2 folders.
  unknown = set(rope) - set(ROPE_FIELDS[kind]) - {"finetuned"}
  if rope.get("partial_rotary_factor") == 1.0:
    unknown.discard("partial_rotary_factor")
  if missing or unknown:
    names = ", ".join(("rope_type", "rope_theta", *ROPE_FIELDS[kind]))
    raise UserError(
      f"{source}: {key} is {dict(given)}; the type {kind!r} has exactly "
      f"{names}. Correct the keys."
    )
  try:
    fields: dict[str, Any] = {
      name: float(rope[name]) for name in ROPE_FIELDS[kind]
    }
    theta = float(theta)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{source}: {key} is {dict(given)} with rope_theta {theta!r}; all but "
      "the type must be numbers."
    ) from error
  integers = {"original_max_position_embeddings"} & set(fields)
  counts = {name: int(fields.pop(name)) for name in integers}
  return Rope(kind, theta, **fields, **counts)


def write_rope(rope: Rope, local: Rope | None) -> dict[str, Any]:
  """Both generations' keys; `local` is that of sliding layers, if they differ.

  `type` is the older name of `rope_type`, and the only one that all of version
  4 knows for linear and dynamic; models with two ropes came after it.
  """
  new = _parameters(rope)
  extra = {key: new[key] for key in ROPE_FIELDS[rope.rope_type]}
  named = rope.rope_type == "llama3" or local is not None
  name = "rope_type" if named else "type"
  old = {
    "rope_theta": rope.rope_theta,
    "rope_scaling": {name: rope.rope_type, **extra} if extra else None,
  }
  if local is None:
    return {**old, "rope_parameters": new}
  return {
    **old,
    "rope_local_base_freq": local.rope_theta,
    "rope_parameters": {
      "full_attention": new,
      "sliding_attention": _parameters(local),
    },
  }


def _parameters(rope: Rope) -> dict[str, Any]:
  extra = {key: getattr(rope, key) for key in ROPE_FIELDS[rope.rope_type]}
  return {
    "rope_type": rope.rope_type,
    "rope_theta": rope.rope_theta,
    **extra,
  }
