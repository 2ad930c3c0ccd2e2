"""What a record's responses share is encoded once.

A preference record is a long prompt with several short responses, and each
response is encoded as the continuation of its prompt. Where a tokenizer is
known to treat two parts of a text by themselves, most of the prompt need not be
encoded again for every response; the tokens are the same.
"""

from collections.abc import Callable
import json
import re
from typing import Any

Cut = Callable[[str], tuple[str, str]]
"""A prompt's (head, rest): for every text, the tokens of head and those of
rest + text are the tokens of prompt + text. Head may be empty."""

# Between two words: what normalizers and added tokens do there is plain.
_LAST_SPACE = re.compile(r".*[A-Za-z]( )(?=[A-Za-z])", re.DOTALL)
_WORD = "▁"  # SentencePiece's sign for the space before a word
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d"
_CLIP = _GPT2 + r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_QWEN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_PATTERNS = {
  _QWEN,
  _LLAMA3,
  _CLIP,
  r"<\|startoftext\|>|<\|endoftext\|>|" + _CLIP,
}
"""Expressions that end a word between a letter and a space."""
_APART = ("Isolated", "Removed")


def make_cut(tokenizer: Any) -> Cut:
  """How prompts may be cut for a `tokenizers.Tokenizer`; by default not."""
  parts = json.loads(tokenizer.to_str())
  if _words_stand_alone(parts) and _added_tokens_keep_off(parts):
    for dropped in (0, 1):
      if _same(tokenizer, "a", " b"[dropped:]):
        return lambda prompt: _cut(prompt, dropped)
  return lambda prompt: ("", prompt)


def _cut(prompt: str, dropped: int) -> tuple[str, str]:
  found = _LAST_SPACE.match(prompt)
  if not found:
    return "", prompt
  space = found.start(1)
  return prompt[:space], prompt[space + dropped :]


def _same(tokenizer: Any, head: str, rest: str) -> bool:
  """Tells whether the rest's space is put there by the tokenizer itself."""
  whole, first, second = (
    tokenizer.encode(text, add_special_tokens=False).ids
    for text in ("a b", head, rest)
  )
  return bool(whole == first + second)


def _words_stand_alone(parts: dict[str, Any]) -> bool:
  """Whether no token can hold the end of a word and the space after it."""
  model, pre_tokenizer = parts["model"], parts["pre_tokenizer"]
  if pre_tokenizer:
    return _ends_words(pre_tokenizer.get("pretokenizers", [pre_tokenizer])[0])
  if model["type"] != "BPE" or model["end_of_word_suffix"]:
    return False
  # The text is one word to it, and every token a piece of the vocabulary.
  crossing = re.compile(f"[^{_WORD}]{_WORD}")
  return _WORD in model["vocab"] and not any(
    map(crossing.search, model["vocab"])
  )


def _ends_words(split: dict[str, Any]) -> bool:
  if split["type"] == "ByteLevel":
    return bool(split["use_regex"])
  if split["type"] != "Split" or split["behavior"] not in _APART:
    return False
  return split["pattern"].get("Regex") in _PATTERNS


def _added_tokens_keep_off(parts: dict[str, Any]) -> bool:
  """Whether no added token can reach or see a space between two letters."""
  texts = [token["content"] for token in parts["added_tokens"]]
  return not any(
    " " in text or text[:1].isalnum() or text[-1:].isalnum() for text in texts
  )
