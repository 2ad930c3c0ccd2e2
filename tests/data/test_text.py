import json

import pytest

from jaxpref import config
from jaxpref.data import tokenizer
from jaxpref.data.text import Counts, Tokens, Unused, tokenize
from jaxpref.data.tokenizer import Rules
from jaxpref.errors import UserError
from jaxpref.types import Comparison, Record, Response

BOS, EOS, END = 0, 1, 2  # as make_tokenizer numbers <s>, </s> and <|end|>

CHAT = (
  "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|end|>"
  "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A chat template that writes BOS itself, and ends turns with <|end|>."""


def _rules(folder):
  return Rules(tokenizer.load(folder))


def _tokenize(rules, prompt, *contents, **limits):
  """The outcome of one record, and the counts of events."""
  pair = [Comparison(0, 1)] if len(contents) == 2 else []
  record = Record("f:1", prompt, [Response(each) for each in contents], pair)
  counts = Counts()
  limits = config.Data(**{"max_length": 1000, **limits})
  (outcome,) = tokenize([record], rules, limits, counts)
  return outcome, +counts.events


def _ids(rules, text):
  """A token a byte, for texts without merges."""
  return [rules.tokenizer.convert_tokens_to_ids(each) for each in text]


@pytest.fixture
def rules(make_tokenizer):
  return _rules(make_tokenizer())


@pytest.fixture(scope="session")
def stories(shared):
  return _rules(shared / "models/stories260K")


def test_gives_the_tokens_of_trl(shared, stories):
  oracle = json.loads((shared / "oracles/trl-dpo.json").read_text())
  records = [
    Record(f"f:{i}", row["prompt"], [Response(row["chosen"]),
                                     Response(row["rejected"])])
    for i, row in enumerate(oracle["rows"])
  ]  # fmt: skip
  counts = Counts()
  limits = config.Data(max_length=10**6)
  told = list(tokenize(records, stories, limits, counts))
  assert len(told) == 80
  assert told == [
    Tokens(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]])
    for row in oracle["tokens"]
  ]
  assert not +counts.events


def test_bos_stands_once_and_eos_ends_a_response(rules):
  tokens, events = _tokenize(rules, "Q:", "x", "y")
  q, x, y = _ids(rules, "Q:"), _ids(rules, "x"), _ids(rules, "y")
  assert tokens == Tokens([BOS, *q], [[*x, EOS], [*y, EOS]])
  assert not events
  # Where the texts bring them, they are not doubled.
  again, _ = _tokenize(rules, "<s>Q:", "x</s>", "y</s>")
  assert again == tokens


def test_eos_inside_a_response_is_counted(rules):
  _, events = _tokenize(rules, "Q:", "x</s>y", "z")
  assert events == {"eos_inside": 1}


def test_a_tokenizer_without_eos_is_counted(make_tokenizer):
  rules = _rules(make_tokenizer(eos=False))
  tokens, events = _tokenize(rules, "Q:", "x", "y")
  assert tokens.responses == [_ids(rules, "x"), _ids(rules, "y")]
  assert events == {"responses_without_end": 2}


@pytest.mark.parametrize(
  ("prompt", "responses"),
  [
    ("xa", ["b", "c"]),  # the merge 'ab' of the first only
    ("q ", ["y", "y?"]),  # ' y', whose offsets leave out the space
    ("end.", [". So", "\nSo"]),
  ],
)
def test_a_token_across_the_boundary_is_split_and_counted(
  rules, prompt, responses
):
  tokens, events = _tokenize(rules, prompt, *responses)
  assert events == {"boundary_split": 1}
  assert rules.encode([prompt])[0].ids == tokens.prompt[1:]
  told = [rules.tokenizer.decode(each[:-1]) for each in tokens.responses]
  assert told == responses


def test_responses_apart_get_no_space_of_their_own(stories):
  # Llama's tokenizer begins every text with a space: 'Once' alone has it.
  # The prompt's last space is part of the tokens '▁time' and '▁then'.
  tokens, events = _tokenize(stories, "Once upon a ", "time,", "then")
  assert events == {"boundary_split": 1}
  decode = stories.tokenizer.decode
  for ids, text in zip(tokens.responses, ["time,", "then"], strict=True):
    assert decode(tokens.prompt[1:] + ids[:-1]).strip() == f"Once upon a {text}"


@pytest.mark.parametrize("first", ["\n", ".", "a", "b", " ", "é", "\n\n"])
def test_apart_is_the_text_whatever_it_begins_with(rules, stories, first):
  for each in (rules, stories):
    (ids,) = each.encode_apart([first + "x"])
    joined = each.tokenizer.decode([*each.encode(["-"])[0].ids, *ids])
    assert joined.lstrip(" ") == f"-{first}x"


def test_an_empty_prompt_is_bos(rules, make_tokenizer):
  tokens, _ = _tokenize(rules, "", "ab")
  assert tokens.prompt == [BOS]
  assert _tokenize(rules, "", "<s>ab")[0] == tokens
  # A tokenizer that has BOS and does not put it by itself: as GPT-2's.
  unused = _rules(make_tokenizer("unused", adds_bos=False))
  assert _tokenize(unused, "", "ab")[0].prompt == [BOS]
  assert _tokenize(unused, "Q:", "x")[0].prompt == _ids(unused, "Q:")
  none = _rules(make_tokenizer("none", adds_bos=False, bos=False))
  outcome, _ = _tokenize(none, "", "ab")
  assert isinstance(outcome, Unused)
  assert outcome.refused
  assert outcome.kind == "empty prompt without BOS"


# BOS and "QUERY:" are 7 tokens, "one" and "seven" with EOS 4 and 6.
@pytest.mark.parametrize(
  ("limits", "prompt", "one", "seven", "events"),
  [
    ({"max_length": 13}, "<QUERY:", "one>", "seven>", {}),
    ({"max_length": 12}, None, "longer than max_length", None, {}),
    ({"max_length": 13, "max_prompt_length": 7}, "<QUERY:", "one>", "seven>",
     {}),
    ({"max_length": 13, "max_prompt_length": 6}, None,
     "prompt longer than max_prompt_length", None, {}),
    ({"max_length": 12, "truncate": "keep_start"}, "<QUERY:", "one>", "seven",
     {"responses_cut": 1}),
    ({"max_length": 8, "truncate": "keep_start"}, "<QUERY:", "o", "s",
     {"responses_cut": 2}),
    ({"max_length": 7, "truncate": "keep_start"}, None,
     "no room for a response", None, {}),
    ({"max_length": 99, "max_prompt_length": 6, "truncate": "keep_start"},
     None, "prompt longer than max_prompt_length", None, {}),
    ({"max_length": 12, "truncate": "keep_end"}, "<UERY:", "one>", "seven>",
     {"prompts_cut": 1}),
    ({"max_length": 7, "truncate": "keep_end"}, "<", "one>", "seven>",
     {"prompts_cut": 1}),
    ({"max_length": 5, "truncate": "keep_end"}, "<", "one>", "seve",
     {"prompts_cut": 1, "responses_cut": 1}),
    ({"max_length": 99, "max_prompt_length": 3, "truncate": "keep_end"},
     "<Y:", "one>", "seven>", {"prompts_cut": 1}),
    ({"max_length": 1, "truncate": "keep_end"}, None,
     "no room for a response", None, {"prompts_cut": 1}),
  ],
)  # fmt: skip
def test_limits(rules, limits, prompt, one, seven, events):
  outcome, counted = _tokenize(rules, "QUERY:", "one", "seven", **limits)
  if prompt is None:
    assert outcome == Unused(False, one)
  else:
    ids = [_ids(rules, text) for text in (prompt, one, seven)]
    marks = {_ids(rules, "<")[0]: BOS, _ids(rules, ">")[0]: EOS}
    ids = [[marks.get(id, id) for id in each] for each in ids]
    assert outcome == Tokens(ids[0], ids[1:])
  assert counted == events


def test_responses_that_a_cut_makes_equal_are_dropped(rules):
  outcome, _ = _tokenize(
    rules, "Q", "same x", "same z", max_length=6, truncate="keep_start"
  )
  assert outcome == Unused(False, "responses of the same tokens")


def test_lengths_are_those_before_any_cut(rules):
  counts = Counts()
  limits = config.Data(max_length=5, truncate="keep_start")
  record = Record("f:1", "Q", [Response("one"), Response("seven")])
  list(tokenize([record], rules, limits, counts))
  assert list(counts.lengths) == [8]


def _user(text):
  return [{"role": "user", "content": text}]


def _assistant(text):
  return [{"role": "assistant", "content": text}]


def test_chat_is_written_by_the_template(make_tokenizer):
  rules = _rules(make_tokenizer(chat_template=CHAT))
  tokens, events = _tokenize(
    rules, _user("hi"), _assistant("x"), _assistant("z")
  )
  assert not events
  assert tokens.prompt.count(BOS) == 1
  assert (
    rules.tokenizer.decode(tokens.prompt) == "<s>[user]hi<|end|>[assistant]"
  )
  assert tokens.responses == [
    [*_ids(rules, "x"), END],
    [*_ids(rules, "z"), END],
  ]


def test_chat_keeps_bos_when_the_prompt_is_cut(make_tokenizer):
  rules = _rules(make_tokenizer(chat_template=CHAT))
  tokens, _ = _tokenize(
    rules, _user("hi"), _assistant("x"), max_length=9, truncate="keep_end"
  )
  assert rules.tokenizer.decode(tokens.prompt) == "<s>stant]"


def test_a_doubled_bos_of_the_template_becomes_one(make_tokenizer):
  rules = _rules(make_tokenizer(chat_template="<s>" + CHAT))
  tokens, _ = _tokenize(rules, _user("hi"), _assistant("x"))
  assert tokens.prompt.count(BOS) == 1


def test_a_template_that_ends_no_turn_is_counted(make_tokenizer):
  template = CHAT.replace("<|end|>", "\n")
  rules = _rules(make_tokenizer(chat_template=template))
  _, events = _tokenize(rules, _user("hi"), _assistant("x"), _assistant("z"))
  assert events == {"responses_without_end": 2}


@pytest.mark.parametrize(
  ("template", "kind", "detail"),
  [
    # Counts the messages first, so that an answer changes the prompt.
    ("{{ messages | length }}" + CHAT, "the chat template rewrites the prompt",
     "does not begin with the prompt"),
    ("{{ raise_exception('roles must alternate') }}",
     "the chat template refuses the messages", "roles must alternate"),
  ],
)  # fmt: skip
def test_a_template_that_does_not_suit_refuses_the_row(
  make_tokenizer, template, kind, detail
):
  rules = _rules(make_tokenizer(chat_template=template))
  outcome, _ = _tokenize(rules, _user("hi"), _assistant("x"))
  assert (outcome.refused, outcome.kind) == (True, kind)
  assert detail in outcome.detail


def test_chat_rows_need_a_template(rules):
  with pytest.raises(
    UserError, match=r"f:1 holds chat.*no chat template.*model\.tokenizer"
  ):
    _tokenize(rules, _user("hi"), _assistant("x"))


def test_chat_with_a_real_tokenizer(shared, tmp_path):
  folder = tmp_path / "stories"
  folder.mkdir()
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (folder / name).write_bytes(
      (shared / "models/stories260K" / name).read_bytes()
    )
  (folder / "chat_template.jinja").write_text(
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: "
    "{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
  )
  rules = _rules(folder)
  tokens, events = _tokenize(
    rules, _user("Tell a story."), _assistant("Once upon"), _assistant("No.")
  )
  # 'assistant: ' ends in a space that belongs to the answer's first token.
  assert events == {"boundary_split": 1}
  whole = rules.tokenizer.apply_chat_template(
    _user("Tell a story.") + _assistant("Once upon"), tokenize=False
  )
  decoded = rules.tokenizer.decode(tokens.prompt + tokens.responses[0])
  # This tokenizer begins every stretch between special tokens with a space.
  assert decoded.replace("> ", ">") == whole
  assert tokens.prompt.count(1) == 1
  assert tokens.responses[0][-1] == 2


def test_a_folder_without_a_fast_tokenizer_is_named(tmp_path):
  with pytest.raises(
    UserError, match=r"'.*nowhere' does not exist.*nothing is"
  ):
    tokenizer.load(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"holds no tokenizer.*model\.tokenizer"):
    tokenizer.load(tmp_path)
  slow = {"tokenizer_class": "ByT5Tokenizer"}  # exists in Python only
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(slow))
  with pytest.raises(UserError, match=r"no character offsets.*a fast one"):
    tokenizer.load(tmp_path)
