"""Each public schema, as pyarrow and `datasets` write it, to records."""

import importlib.util
import pathlib

import pytest

from jaxpref.data import formats
from jaxpref.data.formats import Refused
from jaxpref.data.read import read_rows, source_files

_spec = importlib.util.spec_from_file_location(
  "make_schemas", pathlib.Path(__file__).parent / "schemas/make_schemas.py"
)
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)

ASK = "Name a prime."
USER = schemas.turn("user", ASK)
HUMAN = "\n\nHuman: Name a prime.\n\nAssistant:"


def _said(text):
  return [schemas.turn("assistant", text)]


def _records(path):
  """(format, record) of each row."""
  rows = list(read_rows(source_files(path)))
  names = [formats.detect(row.values) for row in rows]
  return [
    (name, record)
    for name, row in zip(names, rows)
    for record in formats.to_records(row, name)
  ]


PAIR = [USER], [_said("7"), _said("8")], [(0, 1, 1.0)]
AGAIN = [USER, *_said("8"), schemas.turn("user", "It is even.")]
# Format, prompt, contents and (better, worse, preference) of each row.
EXPECTED = {
  "ultrafeedback": [
    ("ultrafeedback", [USER], [_said(n) for n in "8756"], []),
  ],
  "ultrafeedback_binarized": [("chat", *PAIR)],
  "argilla": [("chat", *PAIR)],
  "hh": [("hh", HUMAN, [" 7", " 8"], [(0, 1, 1.0)])],
  "helpsteer2": [
    ("helpsteer2", [schemas.turn("user", "c#")], [_said("A language.")], []),
    ("helpsteer2", [schemas.turn("user", "c#")], [_said("A note.")], []),
    (
      "helpsteer2",
      [
        schemas.turn("user", "Hi."),
        *_said("Hello."),
        schemas.turn("user", "Bye."),
      ],
      [_said("Bye!")],
      [],
    ),
  ],
  "helpsteer3": [
    (
      "helpsteer3",
      [USER, *_said("7"), schemas.turn("user", "Another.")],
      [_said("11"), _said("12")],
      [compared],
    )
    # Two of three people prefer the first; a tie; nobody asked one by one.
    for compared in [(0, 1, 2 / 3), (0, 1, 0.5), (1, 0, 1.0)]
  ],
  "nectar": [
    ("nectar", HUMAN, [f" {n}" for n in (7, 5, 3, 11, 9, 8, 4)], []),
  ],
  "ultrainteract": [
    (
      "ultrainteract",
      [
        USER,
        *_said("print(8)"),
        schemas.turn("user", "Your answer is wrong."),
      ],
      [_said("print(7)"), _said("print(9)")],
      [(0, 1, 1.0)],
    )
  ],
  "ultrainteract_sft": [
    (
      "ultrainteract_sft",
      [schemas.turn("user", ASK + "\nprint(8)\nYour answer is wrong.")],
      [_said("print(7)")],
      [],
    )
  ],
  "tree": [
    ("tree", [USER], [_said("7"), _said("8")], [(0, 1, 1.0)]),
    (
      "tree",
      AGAIN,
      [_said(n) for n in "9563"],
      [(1, 0, 1.0), (1, 2, 1.0), (3, 0, 1.0), (3, 2, 1.0)],
    ),
    (
      "tree",
      [*AGAIN, *_said("9"), schemas.turn("user", "Out: 9\nTry 3.")],
      [_said("11")],
      [],
    ),
  ],
  "nemo": [("nemo", [USER], [_said("8"), _said("7")], [])],
  "trl_language_modeling": [("completion", "", ["7 is a prime."], [])],
  "trl_language_modeling_chat": [("messages", [USER], [_said("7")], [])],
  "trl_prompt_completion": [("completion", ASK, [" 7"], [])],
  "trl_prompt_completion_chat": [("completion", [USER], [_said("7")], [])],
  "trl_preference": [("explicit", ASK, [" 7", " 8"], [(0, 1, 1.0)])],
  "trl_preference_chat": [("chat", *PAIR)],
  "trl_implicit": [("implicit", ASK, [" 7", " 8"], [(0, 1, 1.0)])],
  "trl_implicit_chat": [("chat", *PAIR)],
  "trl_unpaired": [("completion", ASK, [f" {n}"], []) for n in (7, 8)],
  "trl_unpaired_chat": [("completion", [USER], [_said("8")], [])],
  "trl_stepwise": [
    ("stepwise", ASK, ["2 has no divisor.\nSo 4 is a prime."], []),
  ],
}


def test_each_schema_has_an_expectation():
  assert list(EXPECTED) == list(schemas.SCHEMAS) == list(schemas.ROWS)


@pytest.mark.parametrize("name", schemas.SCHEMAS)
@pytest.mark.parametrize("write", ["parquet", "jsonl_gz", "datasets"])
def test_a_schema_is_detected_and_read(tmp_path, name, write):
  path = getattr(schemas, f"write_{write}")(tmp_path, name)
  found = [
    (
      detected,
      record.prompt,
      [each.content for each in record.responses],
      [tuple(each)[:3] for each in record.comparisons],
    )
    for detected, record in _records(path)
  ]
  assert found == EXPECTED[name]


def _scores(tmp_path, name):
  path = schemas.write_parquet(tmp_path, name)
  return [r.scores for _, record in _records(path) for r in record.responses]


def test_ratings_and_ranks_become_scores(tmp_path):
  """Larger is better everywhere; 'N/A' is no score."""
  rated = _scores(tmp_path, "ultrafeedback")
  assert [each["overall"] for each in rated] == [2.0, 9.0, 9.0, 4.0]
  assert rated[0] == {
    "overall": 2.0,
    "fine_grained": 1.0,
    **dict.fromkeys(("helpfulness", "honesty", "instruction_following"), 1.0),
  }
  pairs = _scores(tmp_path, "ultrafeedback_binarized")
  assert pairs == [{"overall": 8.5}, {"overall": 3.0}]
  pairs = _scores(tmp_path, "argilla")
  assert pairs == [{"rating": 4.5}, {"rating": 2.0}]
  first, *_ = _scores(tmp_path, "helpsteer2")
  assert list(first.values()) == [3.0, 4.0, 4.0, 2.0, 1.0]
  ranks = [each["rank"] for each in _scores(tmp_path, "nectar")]
  assert ranks == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]
  assert _scores(tmp_path, "nemo") == [{"rank": -1.0}, {"rank": 0.0}]


def test_votes_labels_and_steps_are_kept(tmp_path):
  read = lambda name: [
    record for _, record in _records(schemas.write_parquet(tmp_path, name))
  ]
  votes = [record.meta["votes"] for record in read("helpsteer3")]
  assert votes == [[-3, -1, 1], [-1, 0, 1], []]
  labels = [record.responses[0].label for record in read("trl_unpaired")]
  assert labels == [True, False]
  labels = [
    [each.label for each in record.responses] for record in read("tree")
  ]
  assert labels == [[True, False], [False, True, False, True], [True]]
  assert read("tree")[2].meta == {"task": "Math_PoT", "dataset": "MATH"}
  (solved,) = read("trl_stepwise")[0].responses
  assert solved.label is False
  assert solved.meta["labels"] == [True, False]
  assert read("nectar")[0].responses[3].meta == {"model": "m11"}


OWN = {
  "id": "a",
  "prompt": "q",
  "responses": [
    {"content": " a", "scores": {"x": 1}, "label": True, "meta": {"k": "v"}},
    {"content": " b", "scores": None},
  ],
  "comparisons": [{"better": 1, "worse": 0, "preference": 0.75}],
}


def test_the_plain_schema_is_the_record_itself():
  _, record = _parse(OWN)
  first, second = record.responses
  assert (first.content, first.scores, first.label) == (" a", {"x": 1.0}, True)
  assert (first.meta, second.scores) == ({"k": "v"}, {})
  assert record.comparisons == [(1, 0, 0.75, 1.0)]
  assert record.meta == {"id": "a"}
  _, record = _parse({**OWN, "prompt": [USER]})
  assert record.prompt == [USER]
  assert record.responses[0].content == _said(" a")


def _parse(values):
  name = formats.detect(values)
  row = formats.read.Row("a.jsonl", 1, values)
  return name, formats.to_records(row, name)[0]


def _changed(name, **values):
  return {**schemas.ROWS[name][0], **values}


def _tried(action, correct=False, **more):
  return {"action": action, "correct": correct, **more}


def _tree(*actions):
  return {"instruction": ASK, "actions": list(actions)}


@pytest.mark.parametrize(
  ("values", "reason"),
  [
    (_changed("ultrafeedback", completions=[]), "completions is not a list"),
    (_changed("ultrafeedback", completions=["7"]), "not a list of objects"),
    (_changed("ultrafeedback", instruction=" "), "empty prompt"),
    (
      _changed("ultrafeedback", completions=[{"overall_score": 3}]),
      "no response: the row has the columns overall_score",
    ),
    (
      _changed("ultrafeedback", completions=[
        {"response": "7", "overall_score": "high"}]),
      "overall_score is not a number: found 'high'",
    ),
    (_changed("nectar", prompt="hi"), "prompt does not end with"),
    (_changed("nectar", answers=[{"answer": "7"}]), "no rank"),
    (_changed("nemo", context=None), "context is null"),
    (_changed("helpsteer3", overall_preference=None), "preference is null"),
    (_changed("helpsteer3", overall_preference=4), "4 is not between -3 and 3"),
    (_changed("helpsteer3", response2="11"), "chosen equals rejected"),
    (_changed("helpsteer2", helpfulness=float("nan")), "not a number"),
    (_changed("ultrainteract", trajectory=[]), "trajectory is not a list"),
    (
      _changed("ultrainteract", trajectory=[{"from": "gpt", "value": "x"}]),
      "does not end with the user's turn: its last turn is the assistant's",
    ),
    (_changed("ultrainteract_sft", response=" "), "empty response"),
    (_changed("tree", instruction=None), "instruction is null"),
    (_changed("tree", actions=[]), "actions is not a list of 1 or more"),
    (_tree({"action": "7"}), "no correct: the row has the columns action; it"),
    (_tree(_tried("7", correct="yes")), "correct is not true or false: it is"),
    (_tree(_tried("7"), _tried("7", correct=True)), "chosen equals rejected"),
    (_tree(_tried("8", actions=[_tried("7")])), "no observation: '8' has act"),
    (
      _tree(_tried("8", critique=3, actions=[_tried("7")])),
      "critique is not a text: found int 3",
    ),
    (
      _tree(_tried("8", critique="No.", actions=3)),
      "actions is not a list of 1 or more: found int 3",
    ),
    (
      _tree(_tried("7", correct=True, actions=[_tried("8")])),
      "goes on from a correct action: '7' has actions after it; they must",
    ),
    (_changed("trl_stepwise", labels=[True]), "2 completions and 1 labels"),
    (_changed("trl_stepwise", labels=[1, 0]), "labels are not all true or"),
    ({"messages": [USER]}, "do not end with the assistant's turn"),
    ({**OWN, "responses": {}}, "responses is not a list of 1 or more"),
    ({**OWN, "comparisons": [{"better": 0, "worse": 2}]}, "not there"),
    (
      {**OWN, "comparisons": [{"better": 0, "worse": 1, "preference": 2}]},
      "preference is 2, from 0 to 1",
    ),
    ({**OWN, "responses": [{"content": "a", "scores": 3}]}, "not an object"),
  ],
)  # fmt: skip
def test_refuses_with_what_was_found(values, reason):
  with pytest.raises(Refused, match=reason):
    _parse(values)


@pytest.mark.parametrize(
  ("values", "told"),
  [
    (
      {"instruction": "q", "answer": "a"},
      r"columns instruction, answer; ultrafeedback lacks completions; .*"
      r"config\.data\.format can be explicit",
    ),
    ({"prompt": "q", "answer": "a"}, "nectar lacks answers"),
    (
      {"task": "t", "instruction": "q", "response": "a"},
      "ultrainteract_sft lacks dataset; ",
    ),
    ({"context": [], "response1": "a"}, "helpsteer3 lacks response2, overall"),
    ({"prompt": "q"}, "prompts alone hold no answer to learn from"),
    ({"caption": "q", "i": 3}, "pickapic lacks .*; prompts alone hold no answ"),
  ],
)
def test_unknown_columns_are_told_with_what_the_nearest_formats_lack(
  values, told
):
  with pytest.raises(Refused, match=told):
    formats.detect(values)


def test_lists_that_are_kept_by_key_are_read_too():
  """As `datasets` kept lists of objects for years."""
  row = schemas.ROWS["nectar"][0]
  by_key = {
    name: [each[name] for each in row["answers"]]
    for name in ("answer", "model", "rank")
  }
  assert _parse({**row, "answers": by_key}) == _parse(row)
