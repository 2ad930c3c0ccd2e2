"""What a prepared folder holds: tokens and where each example stands.

`jaxpref.data.prepared` writes such folders.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

from jaxtyping import Float32, Int32, Int64
import numpy as np

from jaxpref.data.arrays import read_arrays
from jaxpref.data.text import EVENTS

ARRAYS, MANIFEST, REJECTED = (
  "data.safetensors",
  "manifest.json",
  "rejected.jsonl",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """Tokenised examples of a cache folder, or some of them in some order.

  Example i is a prompt with the responses first_response[i] up to
  first_response[i + 1], and the comparisons first_comparison[i] up to
  first_comparison[i + 1]; `better` and `worse` number responses from 0 over
  all examples. Arrays are opened on first use; what travels to another
  process is the folder's name and the choice of examples.
  """

  folder: pathlib.Path
  examples: np.ndarray | None = None  # which of the folder's; None = all

  def __len__(self) -> int:
    return len(self.prompt_lengths)

  def __getstate__(self) -> dict[str, Any]:
    return {"folder": self.folder, "examples": self.examples}

  @property
  def prompt_lengths(self) -> Int32[np.ndarray, " n"]:
    return self._view["prompt_lengths"]

  @property
  def response_lengths(self) -> Int32[np.ndarray, " m"]:
    return self._view["response_lengths"]

  @property
  def first_response(self) -> Int32[np.ndarray, " bounds"]:
    return self._view["first_response"]

  @property
  def better(self) -> Int32[np.ndarray, " c"]:
    return self._view["better"]

  @property
  def worse(self) -> Int32[np.ndarray, " c"]:
    return self._view["worse"]

  @property
  def preference(self) -> Float32[np.ndarray, " c"]:
    return self._view["preference"]

  @property
  def weight(self) -> Float32[np.ndarray, " c"]:
    return self._view["weight"]

  @property
  def first_comparison(self) -> Int32[np.ndarray, " bounds"]:
    return self._view["first_comparison"]

  @functools.cached_property
  def ids(self) -> Sequence[str]:
    """FILE:ROW of each example."""
    names = self._manifest["files"]
    places = zip(self._view["file"], self._view["row"], strict=True)
    return [f"{names[file]}:{row}" for file, row in places]

  def prompt(self, i: int | np.integer) -> Int32[np.ndarray, " tokens"]:
    """The tokens of example i's prompt, BOS included."""
    start = self._view["prompt_start"][i]
    return self._arrays["tokens"][start : start + self.prompt_lengths[i]]

  def response(self, j: int | np.integer) -> Int32[np.ndarray, " tokens"]:
    """The tokens of response j, EOS included."""
    start = self._view["response_start"][j]
    return self._arrays["tokens"][start : start + self.response_lengths[j]]

  @functools.cached_property
  def first_token(self) -> Int64[np.ndarray, " bounds"]:
    """Where each response begins among all response tokens in a row."""
    return _offsets(self.response_lengths)

  @functools.cached_property
  def max_length(self) -> int:
    """The most tokens of a prompt with one response."""
    prompts = np.repeat(self.prompt_lengths, np.diff(self.first_response))
    return int(np.max(prompts + self.response_lengths))

  @functools.cached_property
  def max_token(self) -> int:
    """The largest id in the folder."""
    return int(self._arrays["tokens"].max())

  def select(self, indices: Any) -> "Prepared":
    """The examples `indices`, in that order, numbered anew."""
    chosen = np.asarray(indices, np.int64).reshape(-1)
    if self.examples is not None:
      chosen = self.examples[chosen]
    return Prepared(self.folder, chosen)

  @property
  def stats(self) -> Mapping[str, Any]:
    """Counts of the whole preparation, whatever was selected of it."""
    return self._manifest["stats"]

  @property
  def rejected_file(self) -> pathlib.Path:
    """JSONL: file, row, kind and reason of every row that was refused."""
    return self.folder / REJECTED

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of all tokens and where each prompt and response stands."""
    whole = self._manifest["fingerprint"]
    if self.examples is None:
      return whole
    return hashlib.sha256(whole.encode() + self.examples.tobytes()).hexdigest()

  def summary(self) -> str:
    """What was read, refused, dropped and changed, in a few lines."""
    stats, lengths = self.stats, self.stats["lengths"]
    files = self._manifest["files"]
    names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
    lines = [
      f"{names}: {stats['rows']:,} rows, "
      f"{_told(stats['refused'], 'refused')}, "
      f"{_told(stats['dropped'], 'dropped')}; {stats['examples']:,} examples "
      f"with {stats['responses']:,} responses and {stats['tokens']:,} tokens.",
      self._manifest["formats"],
      "Tokens of a prompt and its longest response, before any cut: median "
      f"{lengths['median']}, 90 % up to {lengths['p90']}, longest "
      f"{lengths['max']}.",
    ]
    lines += [
      f"{stats[name]:,} {meaning}."
      for name, meaning in EVENTS.items()
      if stats[name]
    ]
    return "\n".join(lines)

  @functools.cached_property
  def _manifest(self) -> Mapping[str, Any]:
    return json.loads((self.folder / MANIFEST).read_text())

  @functools.cached_property
  def _arrays(self) -> Mapping[str, np.ndarray]:
    return read_arrays(self.folder / ARRAYS)

  @functools.cached_property
  def _view(self) -> Mapping[str, np.ndarray]:
    view = {**self._arrays, **_starts(self._arrays)}
    return view if self.examples is None else _select(view, self.examples)


def _told(kinds: Mapping[str, int], word: str) -> str:
  parts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
  total = sum(kinds.values())
  return f"{total:,} {word} ({parts})" if total else f"none {word}"


def _starts(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Where prompts and responses begin: each prompt, then its responses."""
  prompts = _offsets(arrays["prompt_lengths"])
  responses = _offsets(arrays["response_lengths"])
  first = arrays["first_response"]
  return {
    "prompt_start": prompts[:-1] + responses[first[:-1]],
    "response_start": responses[:-1] + np.repeat(prompts[1:], np.diff(first)),
  }


def _select(
  view: Mapping[str, np.ndarray], examples: np.ndarray
) -> dict[str, np.ndarray]:
  responses, first_response = _ranges(view["first_response"], examples)
  compared, first_comparison = _ranges(view["first_comparison"], examples)
  moved = first_response[:-1] - view["first_response"][examples]
  moved = np.repeat(moved, np.diff(first_comparison)).astype(np.int32)
  return {
    **{name: view[name][examples] for name in _OF_EXAMPLES},
    **{name: view[name][responses] for name in _OF_RESPONSES},
    "better": view["better"][compared] + moved,
    "worse": view["worse"][compared] + moved,
    "preference": view["preference"][compared],
    "weight": view["weight"][compared],
    "first_response": first_response,
    "first_comparison": first_comparison,
  }


_OF_EXAMPLES = ("prompt_lengths", "prompt_start", "file", "row")
_OF_RESPONSES = ("response_lengths", "response_start")


def _ranges(
  first: np.ndarray, examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What belongs to the examples, and where each one's part begins."""
  counts = np.diff(first)[examples]
  starts = _offsets(counts)
  steps = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
  return np.repeat(first[examples], counts) + steps, starts.astype(np.int32)


def _offsets(lengths: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
