"""A tokenizer small enough to know by heart, for tests without downloads."""

from collections.abc import Callable
import json
import pathlib
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

SPECIAL = ("<s>", "</s>", "<|end|>")  # 0, 1, 2


@pytest.fixture
def make_tokenizer(tmp_path: pathlib.Path) -> Callable[..., str]:
  """Writes a folder with a byte-level tokenizer: a byte a token, but for the
  merges 'ab', ' y' and '..'."""

  def make(
    name: str = "tokenizer", *, bos: bool = True, adds_bos: bool = True,
    eos: bool = True, chat_template: str = "",
  ) -> str:  # fmt: skip
    (folder := tmp_path / name).mkdir()
    _byte_level(adds_bos).save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if bos:
      settings["bos_token"] = "<s>"
    if eos:
      settings["eos_token"] = "</s>"
    if chat_template:
      settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)

  return make


def _byte_level(adds_bos: bool) -> tokenizers.Tokenizer:
  merges = [("a", "b"), ("Ġ", "y"), (".", ".")]
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  names = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
  vocabulary = {name: id for id, name in enumerate(names)}
  made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
  made.add_special_tokens(list(SPECIAL))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  # As GPT-2's and Llama 3's: offsets that leave out the leading space.
  steps: list[Any] = [processors.ByteLevel(trim_offsets=True)]
  if adds_bos:
    steps.append(
      processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
      )
    )
  made.post_processor = processors.Sequence(steps)
  made.enable_truncation(4)  # which must not cut anything here
  return made
