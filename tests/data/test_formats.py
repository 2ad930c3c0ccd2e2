import pytest

from jaxpref.data import formats
from jaxpref.data.formats import Refused
from jaxpref.data.read import Row
from jaxpref.errors import UserError


def _user(text):
  return {"role": "user", "content": text}


def _assistant(text):
  return {"role": "assistant", "content": text}


def _pair(chosen, rejected, **prompt):
  return {**prompt, "chosen": chosen, "rejected": rejected}


def _parse(values, name="auto"):
  name = formats.detect(values) if name == "auto" else name
  (record,) = formats.to_records(Row("a.jsonl", 3, values), name)
  return name, record


HH = "\n\nHuman: hi\n\nAssistant: hm\n\nHuman: so?\n\nAssistant:"
SYSTEM = {"role": "system", "content": "be kind"}


@pytest.mark.parametrize(
  ("values", "name", "prompt", "responses"),
  [
    (_pair(" yes", " no", prompt="Q:"), "explicit", "Q:", [" yes", " no"]),
    (_pair("Q: is it, yes", "Q: is it, no"), "implicit", "Q: is it,",
     [" yes", " no"]),
    # One goes on where the other ends.
    (_pair("it is", "it is not"), "implicit", "it", [" is", " is not"]),
    # Whitespace of two kinds right after the common part.
    (_pair("it is", "it\nwas"), "implicit", "it", [" is", "\nwas"]),
    # Behind the marker the answers agree for a while.
    (_pair("[INST] hi there [/INST] I am A", "[INST] hi there [/INST] I am B"),
     "implicit", "[INST] hi there [/INST]", [" I am A", " I am B"]),
    (_pair(HH + " yes", HH + " no"), "hh", HH, [" yes", " no"]),
    (_pair([_user("q"), _assistant("a")], [_user("q"), _assistant("b")]),
     "chat", [_user("q")], [[_assistant("a")], [_assistant("b")]]),
    (_pair([_assistant("a")], [_assistant("b")], prompt=[SYSTEM, _user("q")]),
     "chat", [SYSTEM, _user("q")], [[_assistant("a")], [_assistant("b")]]),
    (_pair("a", "b", prompt=[_user("q")]),
     "chat", [_user("q")], [[_assistant("a")], [_assistant("b")]]),
    (_pair([_assistant("a")], [_assistant("b")], prompt="q"),
     "chat", [_user("q")], [[_assistant("a")], [_assistant("b")]]),
    # UltraFeedback binarized: the prompt again as the first turn.
    (_pair([_user("q"), _assistant("a")], [_user("q"), _assistant("b")],
           prompt="q", score_chosen=9.0),
     "chat", [_user("q")], [[_assistant("a")], [_assistant("b")]]),
    (_pair([SYSTEM, _user("q"), _assistant("a")],
           [SYSTEM, _user("q"), _assistant("b")], prompt=[SYSTEM, _user("q")]),
     "chat", [SYSTEM, _user("q")], [[_assistant("a")], [_assistant("b")]]),
    # Parquet gives every message every key.
    (_pair([{**_assistant("a"), "name": None}], "b", prompt=[_user("q")]),
     "chat", [_user("q")], [[_assistant("a")], [_assistant("b")]]),
    ({"prompt": "Q:", "completion": " A"}, "completion", "Q:", [" A"]),
    ({"prompt": "", "completion": "A"}, "completion", "", ["A"]),
    ({"completion": "A"}, "completion", "", ["A"]),
    ({"text": "A story."}, "completion", "", ["A story."]),
    ({"prompt": [_user("q")], "completion": [_assistant("a")]},
     "completion", [_user("q")], [[_assistant("a")]]),
    ({"prompt": "q", "completion": [_assistant("a")]},
     "completion", [_user("q")], [[_assistant("a")]]),
  ],
)  # fmt: skip
def test_tells_prompt_from_responses(values, name, prompt, responses):
  found, record = _parse(values)
  assert found == name
  assert record.id == "a.jsonl:3"
  assert record.prompt == prompt
  assert [response.content for response in record.responses] == responses
  compared = [tuple(comparison) for comparison in record.comparisons]
  assert compared == ([(0, 1, 1.0, 1.0)] if len(responses) == 2 else [])


@pytest.mark.parametrize(
  ("values", "reason"),
  [
    ({"prompt": "q", "chosen": "a"}, r"no rejected: .*columns prompt, chosen"),
    ({"rejected": "a"}, "no chosen"),
    (_pair("a", None, prompt="q"), "rejected is null"),
    (_pair("a", "b", prompt=None), "prompt is null"),
    (_pair("a", 3, prompt="q"), "rejected is not a text: found int 3; it must"),
    (_pair({"a": 1}, "b", prompt="q"), "chosen is not a text: found dict"),
    (_pair("a", "a", prompt="q"), "chosen equals rejected"),
    (_pair("a", " \n", prompt="q"), "empty response"),
    (_pair("a", "b", prompt=" "), "empty prompt"),
    (_pair("a\ud800", "b", prompt="q"), "chosen is not Unicode"),
    (_pair("yes", "no", question="q"), r"no common prompt: .*question, chosen"),
    (_pair(HH + " a", HH + " b", prompt=3), "prompt is not a text"),
    (_pair(HH + " a", "\n\nHuman: ho\n\nAssistant: b"), "prompts differ"),
    (_pair(HH + " a", HH + " "), "empty response"),
    (_pair(HH + " a", "b"), "no .*Assistant:.* in rejected"),
    (_pair(HH + " a", HH + " b\n\nHuman: c"), "rejected does not end with the"),
    (_pair([_user("q")], "b", prompt="q"), "response with other turns"),
    (_pair([_assistant("a")], [_assistant("b")]), "no common prompt"),
    (_pair([_user("q"), _assistant("a")], [_assistant("b")], prompt="q"),
     "response with other turns: chosen .* user, assistant; all"),
    (_pair([_user("q"), _assistant("")], [_user("q"), _assistant("b")]),
     "empty response"),
    (_pair([], [_assistant("b")]), "chosen is not a list of messages"),
    (_pair([{"from": "gpt", "value": "a"}], [_assistant("b")]),
     "chosen has a message without role: its keys are from, value"),
    (_pair([_user(["q"]), _assistant("a")], [_assistant("b")]),
     "chosen has a message without content"),
    (_pair(["q", "a"], ["q", "b"]), "chosen is not a list of messages"),
    ({"prompt": "q", "completion": ""}, "empty response"),
    ({"prompt": "q", "completion": "a", "label": "no"}, "label is not true"),
    ({"question": "q", "answer": "a"}, "unknown columns: .*question, answer"),
    ({}, "unknown columns: no columns"),
  ],
)  # fmt: skip
def test_refuses_with_what_was_found(values, reason):
  with pytest.raises(Refused, match=reason) as error:
    _parse(values)
  assert str(error.value).startswith(error.value.kind)


@pytest.mark.parametrize(
  ("label", "expected"),
  [(True, True), (False, False), (1, True), (0, False), (None, None)],
)
def test_a_label_says_whether_an_answer_is_desirable(label, expected):
  for content in ({"completion": "A"}, {"text": "A"}):
    _, record = _parse({**content, "label": label})
    assert [each.label for each in record.responses] == [expected]
  assert _parse({"text": "A"})[1].responses[0].label is None


def test_a_named_format_is_not_guessed():
  values = _pair(HH + " yes", HH + " no", prompt="Q:")
  assert _parse(values)[0] == "explicit"
  assert _parse(values, "hh")[1].prompt == HH
  record = _parse(_pair("a", "b", prompt="q"), "chat")[1]
  assert record.prompt == [_user("q")]
  with pytest.raises(Refused, match="no prompt: the row has the columns text"):
    _parse({"text": "a"}, "explicit")


def test_an_unknown_format_is_named_with_the_nearest():
  formats.check_format("auto")
  with pytest.raises(UserError, match=r"'explict'.*Did you mean 'explicit'"):
    formats.check_format("explict")


def test_explains_what_it_found_in_one_sentence():
  told = formats.explain({"hh": 2, "chat": 3})
  assert told.startswith("data.format is chat (3 rows: columns chosen and")
  assert "and hh (2 rows: columns" in told
  assert told.count(". ") == 0
