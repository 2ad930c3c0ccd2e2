"""A folder's tokenizer, and the rules by which texts become tokens with it."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
from typing import Any

from jaxpref.data.shared_start import Cut, make_cut
from jaxpref.errors import UserError

_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_ANCHORS = ("\n", ".", "a")


def fingerprint(folder: str | pathlib.Path) -> str:
  """A hash of what decides a folder's tokens; reads no weights."""
  root = _folder(folder)
  digest = hashlib.sha256()
  for package in ("transformers", "tokenizers"):
    digest.update(importlib.metadata.version(package).encode())
  for file in sorted([*root.iterdir(), *root.glob("*/*.jinja")]):
    if file.suffix in _SUFFIXES and not file.name.endswith(".index.json"):
      digest.update(repr(str(file.relative_to(root))).encode())
      digest.update(hashlib.sha256(file.read_bytes()).digest())
  return digest.hexdigest()


def load(folder: str | pathlib.Path) -> Any:
  """The transformers tokenizer of a folder; nothing is ever downloaded.

  Raises UserError where there is none, or none with character offsets.
  """
  import transformers  # seconds: a cache that is up to date needs none of it

  root = _folder(folder)
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      str(root), local_files_only=True
    )
  except Exception as error:  # many kinds, by file and format
    raise UserError(
      f"The folder {root} holds no tokenizer that transformers can load "
      f"({_first_line(error)}). Set model.tokenizer to a folder with "
      "tokenizer.json and tokenizer_config.json."
    ) from error
  if not tokenizer.is_fast:
    raise UserError(
      f"The tokenizer of {root} ({type(tokenizer).__name__}) gives no "
      "character offsets, by which responses are told from prompts; it must "
      "be a fast one. Save it with a tokenizer.json."
    )
  return tokenizer


@dataclasses.dataclass(frozen=True)
class Rules:
  """What `jaxpref.data.text` needs of a tokenizer."""

  tokenizer: Any

  @functools.cached_property
  def encoder(self) -> Any:
    """The tokenizer in Rust, adding nothing, cutting nothing."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(
      self.tokenizer.backend_tokenizer.to_str()
    )
    backend.no_truncation()
    backend.no_padding()
    # GPT-2's own says that " word" begins after the space, which would hide
    # tokens across the boundary.
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    return backend

  @functools.cached_property
  def cut(self) -> Cut:
    """Where a prompt may be cut without changing its tokens."""
    return make_cut(self.encoder)

  @functools.cached_property
  def prefix(self) -> list[int]:
    """What the tokenizer puts before a text by its own rule: BOS, or []."""
    encoded = self.tokenizer("a", return_special_tokens_mask=True)
    mask = encoded["special_tokens_mask"]
    return encoded["input_ids"][: mask.index(0) if 0 in mask else 0]

  @functools.cached_property
  def ending(self) -> frozenset[int]:
    """Tokens that can end a chat answer: the special ones, BOS excepted."""
    added = self.tokenizer.added_tokens_decoder.items()
    special = {id for id, token in added if token.special}
    special |= set(self.tokenizer.all_special_ids)
    return frozenset(special - {self.tokenizer.bos_token_id})

  def encode(self, texts: list[str]) -> list[Any]:
    """Encodings of the texts as they stand, no special token added."""
    return self.encoder.encode_batch(texts, add_special_tokens=False)

  def encode_apart(self, texts: list[str]) -> list[list[int]]:
    """The tokens of texts that follow another text, each by itself.

    A tokenizer may treat the beginning of a text in a way of its own (Llama's
    puts a space before it), so a character is put there that keeps its own
    token, and taken away again.
    """
    found: list[list[int] | None] = [None] * len(texts)
    for anchor in _ANCHORS:
      open = [i for i, ids in enumerate(found) if ids is None]
      encodings = self.encode([anchor + texts[i] for i in open])
      for i, encoding in zip(open, encodings, strict=True):
        if (start := boundary(encoding, 1)) is not None:
          found[i] = encoding.ids[start:]
    plain = self.encode([t for t, ids in zip(texts, found) if ids is None])
    rest = iter(plain)
    return [next(rest).ids if ids is None else ids for ids in found]


def boundary(encoding: Any, character: int) -> int | None:
  """The first token from `character` on; None where a token spans it."""
  token = encoding.char_to_token(character)
  if token is None:  # the normalizer took the character away
    ends = (end > character for _, end in encoding.offsets)
    token = next((i for i, after in enumerate(ends) if after), None)
    if token is None:
      return len(encoding)
  start, _ = encoding.token_to_chars(token)
  return token if start >= character else None


def _folder(folder: str | pathlib.Path) -> pathlib.Path:
  root = pathlib.Path(folder).expanduser()
  if not str(folder) or not root.is_dir():
    raise UserError(
      f"The tokenizer folder {str(folder)!r} does not exist. Set "
      "model.tokenizer (or model.path) to a Hugging Face folder on this "
      "machine; nothing is downloaded."
    )
  return root


def _first_line(error: Exception) -> str:
  return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
