from hypothesis import given
from hypothesis import strategies as st
import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from jaxpref.data import shared_start
from jaxpref.data.shared_start import make_cut
from jaxpref.data.tokenizer import Rules, load

PROSE = """Human: what is the name of it?
Assistant: it is the name of that which can, in 1234, be a bird's.
Human: it's not what it is.
Assistant: you're right, it can be that of a bird."""
WORDS = ["a", "can", "it's", "1234", "<s>", "</s>", "é", "\u0301", "▁", "of",
         "\n\nHuman:", "'S", "\t", "  ", "...", "in", "x" * 20]  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS)).map(" ".join) | st.text("ab c'▁\n1.")


def _trained(pre_tokenizer, normalizer=None):
  """A tokenizer of 400 pieces, many of them several words long if it may."""
  made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
  if pre_tokenizer:
    made.pre_tokenizer = pre_tokenizer
  if normalizer:
    made.normalizer = normalizer
  trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<unk>", "<s>"], show_progress=False
  )
  made.train_from_iterator(PROSE.splitlines(), trainer)
  return made


def _split(pattern, behavior="isolated"):
  split = pre_tokenizers.Split(Regex(pattern), behavior)
  return _trained(
    pre_tokenizers.Sequence(
      [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
  )


def _real(shared, name):
  return Rules(load(shared / "models" / name)).encoder


KINDS = {
  "stories260K": lambda shared: _real(shared, "stories260K"),
  "CLIP": lambda shared: _real(shared, "clip-tokenizer"),
  "GPT-2": lambda _: _trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
  "Llama 3": lambda _: _split(shared_start._LLAMA3),
  "Qwen": lambda _: _split(shared_start._QWEN),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
  return KINDS[request.param](request.getfixturevalue("shared"))


def _ids(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False).ids


def test_head_and_rest_give_the_tokens_of_the_whole(tokenizer):
  cut, cuts = make_cut(tokenizer), set()

  @given(TEXTS, TEXTS)
  def check(prompt, response):
    head, rest = cut(prompt)
    cuts.add(bool(head))
    assert rest or not prompt
    assert _ids(tokenizer, head) + _ids(tokenizer, rest + response) == _ids(
      tokenizer, prompt + response
    )

  check()
  assert cuts == {False, True}


def test_the_head_is_most_of_the_prompt(tokenizer):
  prompt = "\n\nHuman: what is the name of it?\n\nAssistant:"
  head, _ = make_cut(tokenizer)(prompt)
  assert head == "\n\nHuman: what is the name of"


def _without_pre_tokenizer():
  return _trained(None, normalizers.Replace(" ", "▁"))


def _with_added_token():
  made = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
  made.add_tokens(["it is"])
  return made


@pytest.mark.parametrize(
  "make",
  [
    _without_pre_tokenizer,
    _with_added_token,
    lambda: _split(r"[^\n]+\n"),
    lambda: _split(shared_start._QWEN, "merged_with_next"),
  ],
)
def test_no_cut_where_a_token_may_hold_two_words(make):
  prompt = "what is it"
  assert make_cut(make())(prompt) == ("", prompt)


def test_pieces_across_words_would_be_cut_wrongly():
  """Why a vocabulary is searched: this one's pieces hold several words."""
  made = _without_pre_tokenizer()
  prompt = PROSE.splitlines()[0]
  head, space, rest = prompt.partition(" of")
  assert _ids(made, head) + _ids(made, space + rest) != _ids(made, prompt)
