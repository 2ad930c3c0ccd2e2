"""Records as they are between stages, written down."""

from typing import Any

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.images import picture
from jaxpref.data.formats.parts import Values, response, scores, structs
from jaxpref.types import Comparison, Record, Response


def record(id: str, values: Values) -> Record:
  """{prompt, responses: [{content, scores, label, meta}], comparisons}.

  A content is a text, chat messages, or {image}, as in `images.picture`.
  """
  listed = structs(values, "responses")
  if any(isinstance(each.get("content"), dict) for each in listed):
    return _pictured(id, values, listed)
  chat = isinstance(values.get("prompt"), list) or any(
    isinstance(each.get("content"), list) for each in listed
  )
  read = columns.turns if chat else columns.text
  prompt = values.get("prompt", "")
  if chat and isinstance(prompt, str):
    prompt = [{"role": "user", "content": columns.text(values, "prompt")}]
  elif "prompt" in values:
    prompt = read(values, "prompt")
  responses = [_response(each, read(each, "content")) for each in listed]
  return _whole(id, values, prompt, responses)


def _pictured(id: str, values: Values, listed: list[Values]) -> Record:
  contents = [_object(each, "content") for each in listed]
  responses = [
    _response(each, picture(columns.present(content, "image"), "image"))
    for each, content in zip(listed, contents, strict=True)
  ]
  return _whole(id, values, columns.text(values, "prompt"), responses)


def _whole(
  id: str, values: Values, prompt: Any, responses: list[Response]
) -> Record:
  compared = values.get("comparisons") or []
  if compared:
    compared = structs(values, "comparisons", 0)
  meta = _object(values, "meta")
  if isinstance(values.get("id"), (str, int)):
    meta = {**meta, "id": values["id"]}
  pairs = [_comparison(each, responses) for each in compared]
  return Record(id, prompt, responses, pairs, meta)


def _response(values: Values, content: Any) -> Response:
  given = _object(values, "scores")
  found = scores(given, {name: name for name in given})
  label = values.get("label")
  if not (label is None or isinstance(label, bool)):
    raise Refused("label is not true or false", f"it is {label!r}")
  meta = _object(values, "meta")
  return response(content, scores=found, label=label, meta=meta)


def _comparison(values: Values, responses: list[Response]) -> Comparison:
  sides: list[Any] = [values.get(name) for name in ("better", "worse")]
  for side in sides:
    if type(side) is not int or not 0 <= side < len(responses):
      raise Refused(
        "comparison of responses that are not there",
        f"better and worse are {sides}, and must number the "
        f"{len(responses)} responses from 0",
      )
  better, worse = sides
  if responses[better].content == responses[worse].content:
    raise Refused("chosen equals rejected", "such a comparison says nothing")
  given = scores(values, {"preference": "preference", "weight": "weight"})
  compared = Comparison(better, worse, **given)
  if not 0 <= compared.preference <= 1 or compared.weight < 0:
    raise Refused(
      "comparison out of range",
      f"preference is {compared.preference:g}, from 0 to 1, and weight "
      f"{compared.weight:g}, at least 0",
    )
  return compared


def _object(values: Values, name: str) -> dict[str, Any]:
  found = values.get(name)
  if found is not None and not isinstance(found, dict):
    raise Refused(f"{name} is not an object", columns.short(found))
  # Parquet gives every object every key; those not set are null.
  return {key: each for key, each in (found or {}).items() if each is not None}
