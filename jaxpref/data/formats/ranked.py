"""Several answers to a prompt, rated or ranked: no pair is made of them here.

Ranks become the score `rank`, negated, so that larger is better everywhere.
"""

from jaxpref.data import columns
from jaxpref.data.columns import Refused
from jaxpref.data.formats.pairs import HH
from jaxpref.data.formats.parts import (
  Values,
  answer,
  check_response,
  number,
  question,
  rank_score,
  response,
  scores,
  structs,
)
from jaxpref.types import Record, Response

_ASPECTS = (
  "helpfulness",
  "honesty",
  "instruction_following",
  "truthfulness",
)


def ultrafeedback(id: str, values: Values) -> Record:
  """Completions whose ratings are texts, 'N/A' where there is none."""
  prompt = question(columns.text(values, "instruction"))
  completions = structs(values, "completions")
  return Record(id, prompt, [_rated(each) for each in completions])


def nectar(id: str, values: Values) -> Record:
  """A transcript as in HH-RLHF, and ranked answers to its last turn."""
  prompt = columns.text(values, "prompt").rstrip()
  if not prompt.endswith(HH):
    raise Refused(f"prompt does not end with {HH!r}", columns.short(prompt))
  answers = structs(values, "answers")
  # After the marker stands a space, which is the answer's first character.
  return Record(
    id,
    prompt,
    [
      response(
        " " + columns.text(each, "answer").lstrip(" "),
        scores=rank_score(each),
        meta=_model(each),
      )
      for each in answers
    ],
  )


def nemo(id: str, values: Values) -> Record:
  """Ranked completions of a conversation, 0 the best."""
  prompt = columns.conversation(values, "context")
  responses = []
  for each in structs(values, "completions"):
    turns = columns.conversation(each, "completion")
    check_response(turns, "completion")
    responses.append(response(turns, scores=rank_score(each)))
  return Record(id, prompt, responses)


def _rated(values: Values) -> Response:
  names = {"overall": "overall_score", "fine_grained": "fine-grained_score"}
  found = scores(values, names)
  annotations = values.get("annotations")
  aspects = annotations if isinstance(annotations, dict) else {}
  for aspect in _ASPECTS:
    told = aspects.get(aspect)
    rating = number(told, "Rating") if isinstance(told, dict) else None
    if rating is not None:
      found[aspect] = rating
  content = answer(columns.text(values, "response"))
  return response(content, scores=found, meta=_model(values))


def _model(values: Values) -> dict[str, str]:
  model = values.get("model")
  return {"model": model} if isinstance(model, str) else {}
