"""What the inspector says of made-up data and of the real comparisons."""

import json
import re

import pytest

from jaxpref import config
from jaxpref.data import tokenizer
from jaxpref.data.inspect import __main__ as command
from jaxpref.data.inspect.measure import disagreement, measure, noise
from jaxpref.data.inspect.page import write_page
from jaxpref.data.inspect.spans import spans
from jaxpref.data.inspect.tables import length_bias, sections
from jaxpref.data.text import Tokens

Q = [{"role": "user", "content": "q"}]
TEMPLATE = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"


def _judged(first, second, overall, *votes):
  return {
    "context": Q,
    "response1": first,
    "response2": second,
    "overall_preference": overall,
    "individual_preference": [{"score": vote} for vote in votes],
  }


def _rated(*answers):
  """One of UltraFeedback; an answer is (text, overall score)."""
  told = [{"response": text, "overall_score": x} for text, x in answers]
  return {"instruction": "rate", "completions": told}


ROWS = [
  _judged("long answer", "no", -2, -3, -1, 1),
  _judged("no", "long answer", -1),  # the same two, the other way
  _judged("no", "long answer", -1),  # again
  _judged("a", "b", 0, -1, 1),
  _judged("a", "a", 1),
  _rated(("best", 9.0), ("second", 9.0), ("last", 1.0)),
  {"prompt": Q, "chosen": "yes", "rejected": "no", "score_chosen": 1,
   "score_rejected": 2},
  {"prompt": "q\x1b[31m", "completion": "<b>bold</b>", "label": False},
  {"question": "q"},
]  # fmt: skip


@pytest.fixture
def made(tmp_path, make_tokenizer):
  """(path, tokenizer's folder)"""
  file = tmp_path / "made.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return str(file), make_tokenizer(chat_template=TEMPLATE)


def _measure(path, folder, **data):
  rules = tokenizer.Rules(tokenizer.load(folder))
  return measure(path, rules, config.Data(**data)), rules.tokenizer


def _told(found, max_length=1024):
  """Section -> name -> value."""
  return {
    title: {line.name.strip(): line.value for line in lines}
    for title, lines in sections(found, max_length)
  }


def test_counts_what_was_put_in(made):
  found, _ = _measure(*made)
  told = _told(found, max_length=8)
  assert told["Rows"]["rows"] == "9"
  assert told["Rows"]["refused"] == "2 (22.2%)"
  assert told["Rows"]["chosen equals rejected"] == "1"
  assert told["Rows"]["unknown columns"] == "1"
  assert told["Answers"]["answers to a prompt"] == "1 × 1, 5 × 2, 1 × 3"
  assert told["Answers"]["different prompts"] == "3"
  assert told["Answers"]["repeated examples"] == "2 (28.6%)"
  assert told["Answers"]["labelled desirable"] == "0 (0.0%)"
  pairs = told["Comparisons"]
  assert pairs["comparisons"] == "5"
  assert pairs["ties"] == "1 (20.0%)"
  assert pairs["soft"] == "1 (20.0%)"
  assert pairs["chosen = rejected"] == "1"
  assert pairs["contradictions"] == "2"
  assert pairs["scored the other way"] == "1 (100.0%)"
  # One of the judged, 'yes', and of the rated none of two: 'second' and 'best'
  # are as long as or longer than 'last'.
  assert found.pairs.count((12, 3)) == 1
  assert found.pairs.count((3, 12)) == 2
  assert length_bias(found.pairs) == (3, 5)
  assert told["Scores"]["overall"].startswith("1 – ")
  assert told["Scores"]["best is tied"] == "1 (100.0%)"
  assert told["Annotators"]["judged by several"] == "2"
  # Of three votes two of three pairs differ, of two one of one.
  assert disagreement(found.votes) == 3 / 4
  assert told["Longer than"]["8"].startswith("5 (")


def test_noise_is_what_makes_two_disagree():
  for error in (0.0, 0.1, 0.3, 0.5):
    assert noise(2 * error * (1 - error)) == pytest.approx(error)
  assert noise(0.9) == 0.5  # more than chance: as if drawn by lot
  assert disagreement([[0.0, 0.0], [1.0, 0.0], [3.0, 2.0, 1.0]]) == 0.0


def test_spans_are_the_text_and_say_what_is_special(make_tokenizer):
  loaded = tokenizer.load(make_tokenizer())
  encode = lambda text: loaded.encode(text, add_special_tokens=False)
  tokens = Tokens([0, *encode("Q: ab")], [[*encode(" yés…"), 1], [1]])
  shown = spans(loaded, tokens, 0)
  assert "".join(each.text for each in shown) == "<s>Q: ab yés…</s>"
  assert [each.text for each in shown][:5] == ["<s>", "Q", ":", " ", "ab"]
  assert [each.special for each in shown] == [True, *[False] * 11, True]
  assert {each.role for each in shown[:5]} == {"prompt"}
  assert {each.role for each in shown[5:]} == {"response"}
  # A character of several tokens stands at its last.
  assert [each.text for each in shown][6:9] == ["", "é", "s"]
  short = spans(loaded, tokens, 0, most=3)
  assert "".join(each.text for each in short) == "… : ab yé …"


def test_the_command_prints_and_writes_a_page(made, tmp_path, capsys):
  path, folder = made
  html = tmp_path / "page.html"
  arguments = [path, f"--tokenizer={folder}", f"--html={html}"]
  assert command.main([*arguments, "--examples=9", "--color=yes"]) == 0
  out = capsys.readouterr().out
  assert "data.format is helpsteer3 (5 rows: columns response1" in out
  assert "made.jsonl:9: unknown columns: the columns question;" in out
  assert "made.jsonl:6, response 3 of 3" in out
  colored = re.sub(r"\x1b\[(30;48;5;\d+|0)m", "", out)
  assert "\x1b" not in colored  # that of the data does not reach the terminal
  page = html.read_text()
  assert "&lt;b&gt;bold" not in page  # it is cut into tokens
  assert "<b>bold" not in page
  assert page.count("<svg") == 5
  assert 'class="response0' in page
  assert not re.findall(r'(?:src|href)="(?!#)', page)
  assert command.main([*arguments[:2], "--examples=1"]) == 0
  assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ({"path": "nowhere.jsonl"}, "'nowhere.jsonl' does not exist"),
    ({"--tokenizer": "nowhere"}, "tokenizer folder 'nowhere' does not exist"),
    ({"--format": "nectr"}, "Did you mean 'nectar'?"),
    ({"--html": "no/such/folder.html"}, "there is no folder"),
  ],
)
def test_a_mistake_is_told_in_a_paragraph(made, given, told, capsys):
  path, folder = made
  flags = {"--tokenizer": folder, **given}
  path = flags.pop("path", path)
  given = [f"{name}={value}" for name, value in flags.items()]
  assert command.main([path, *given]) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.startswith("jaxpref: ")
  assert told in " ".join(captured.err.split())


def test_the_real_comparisons(shared, tmp_path):
  """Harmless answers are the shorter ones: the longer wins in 44 %."""
  path = shared / "data/hh-harmless-test.jsonl.gz"
  found, loaded = _measure(str(path), str(shared / "models/stories260K"))
  told = _told(found, max_length=512)
  assert told["Rows"] == {
    "rows": "2,312",
    "read": "2,303",
    "refused": "9 (0.4%)",
    "prompts differ": "5",
    "empty response": "4",
  }
  assert told["Answers"]["different prompts"] == "2,301"
  assert told["Answers"]["repeated examples"] == "0 (0.0%)"
  pairs = told["Comparisons"]
  assert pairs["comparisons"] == "2,303"
  assert pairs["ties"] == pairs["soft"] == "0 (0.0%)"
  assert pairs["chosen = rejected"] == pairs["contradictions"] == "0"
  assert pairs["longer answer wins"] == "1,009 (44.2%)"
  assert length_bias(found.pairs) == (1009, 2283)
  assert pairs["better answer"] == "63, 219, 610"
  assert pairs["worse answer"] == "83, 260, 1,319"
  tokens = told["Tokens"]
  assert tokens["prompt"] == "223, 645, 2,132"
  assert tokens["prompt and longest answer"] == "355, 879, 2,513"
  assert tokens["boundary split"] == tokens["eos inside"] == "0"
  limits = ["1,528 (66.3%)", "697 (30.3%)", "139 (6.0%)", "5 (0.2%)"]
  assert list(told["Longer than"].values()) == limits
  write_page(tmp_path / "hh.html", found, loaded, str(path), 512)
  assert (tmp_path / "hh.html").read_text().count("<svg") == 3
