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

from jaxtyping import Bool, Float32, Int, Int32, Int64
import numpy as np

from jaxpref.data import view
from jaxpref.data.arrays import read_arrays
from jaxpref.data.text import EVENTS
from jaxpref.errors import UserError

ARRAYS, MANIFEST, REJECTED = (
  "data.safetensors", "manifest.json", "rejected.jsonl",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Pairing:
  """Comparisons and a score of each response, for all of a folder's examples.

  They take the place of what the data bring; `jaxpref.pair` makes them.
  """

  better: Int32[np.ndarray, " c"]
  worse: Int32[np.ndarray, " c"]
  preference: Float32[np.ndarray, " c"]
  weight: Float32[np.ndarray, " c"]
  first_comparison: Int32[np.ndarray, " bounds"]
  score: Float32[np.ndarray, " m"]  # larger is better; NaN: not scored
  ratings: Float32[np.ndarray, "m rewards"]  # see `Prepared.ratings`
  preferences: Float32[np.ndarray, "c rewards"]


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
  mismatch: tuple[int, int] | None = None  # see `with_mismatched`
  pairing: Pairing | None = None  # None: the data's own comparisons
  apart: bool = False  # see `by_comparison`
  prefix: int = 0  # places kept free before each prompt, for virtual tokens

  def __len__(self) -> int:
    return len(self.prompt_lengths)

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @property
  def prompt_lengths(self) -> Int32[np.ndarray, " n"]:
    return self._view["prompt_lengths"]

  @property
  def response_lengths(self) -> Int32[np.ndarray, " m"]:
    return self._view["response_lengths"]

  @property
  def label(self) -> Int32[np.ndarray, " m"]:
    """Of each response: 1 desirable, 0 undesirable, -1 not known.

    The data's own label; else whether it is better or worse than all that it
    is compared with.
    """
    return self._view["label"]

  @property
  def axes(self) -> Sequence[str]:
    """What the data score responses by."""
    return self._manifest.get("axes", [])

  @property
  def scores(self) -> Float32[np.ndarray, "axes m"]:
    """The data's own scores of each response; NaN where there is none."""
    return self._view["scores"]

  @property
  def score(self) -> Float32[np.ndarray, " m"]:
    """How good each response is, larger better; NaN where not known.

    That of the pairing; else by how many it is preferred to, less by how many
    others are preferred to it.
    """
    return self._view["score"]

  @property
  def ratings(self) -> Float32[np.ndarray, "m rewards"]:
    """Scores on the axes of a reward model that trains on several.

    In its order; NaN where a response has none. Without such a model there
    are no axes.
    """
    return self._view["ratings"]

  @property
  def preferences(self) -> Float32[np.ndarray, "c rewards"]:
    """P(better is preferred) on each axis of `ratings`; NaN: not compared."""
    return self._view["preferences"]

  @property
  def bucket(self) -> Int[np.ndarray, " n"] | None:
    """A number of each example; a step holds those of one alone. None: any."""
    return None

  @property
  def compared(self) -> Bool[np.ndarray, " m"]:
    """Which responses are in a comparison."""
    found = np.zeros(len(self.label), bool)
    found[self.better] = found[self.worse] = True
    return found

  @property
  def imitated(self) -> Bool[np.ndarray, " m"]:
    """Which responses are neither undesirable nor worse than another."""
    kept = self.label != 0
    kept[self.worse[self.preference != 0.5]] = False
    return kept

  @property
  def mismatched(self) -> Bool[np.ndarray, " m"]:
    """Which responses answer another prompt; see `with_mismatched`."""
    return self._view["mismatched"]

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
    return self._tokens[start : start + self.prompt_lengths[i]]

  def response(self, j: int | np.integer) -> Int32[np.ndarray, " tokens"]:
    """The tokens of response j, EOS included."""
    start = self._view["response_start"][j]
    return self._tokens[start : start + self.response_lengths[j]]

  @functools.cached_property
  def first_token(self) -> Int64[np.ndarray, " bounds"]:
    """Where each response begins among all response tokens in a row."""
    return view.offsets(self.response_lengths)

  @functools.cached_property
  def max_length(self) -> int:
    """The most tokens of a prompt with one response."""
    prompts = np.repeat(self.prompt_lengths, np.diff(self.first_response))
    return int(np.max(prompts + self.response_lengths))

  @functools.cached_property
  def max_token(self) -> int:
    """The largest id in the folder."""
    return int(self._tokens.max())

  def select(self, indices: Any) -> "Prepared":
    """The examples `indices`, in that order, numbered anew."""
    chosen = np.asarray(indices, np.int64).reshape(-1)
    if self.examples is not None:
      chosen = self.examples[chosen]
    return dataclasses.replace(self, examples=chosen)

  def by_comparison(self) -> "Prepared":
    """An example for each comparison: its prompt and its two responses.

    Called before any examples are selected.
    """
    assert self.examples is None
    return dataclasses.replace(self, apart=True)

  def with_mismatched(self, block: int, max_length: int) -> "Prepared":
    """Each prompt also gets the responses of another one, marked as such.

    From them KTO estimates how far the policy is from the reference. Examples
    are taken in blocks of `block` in their order, and each gets the responses
    of the one before it in its block, the first those of the last one. Where
    a block has several examples of a prompt, as many are passed over as have
    the most frequent one. Which belongs to which does not depend on the step,
    so that reference log-probs can be cached.

    Args:
      block: examples of a block; at least 2.
      max_length: tokens of a prompt with such a response, which is cut there.

    Raises UserError where there is no other example in a block.
    """
    if len(self) < 2 or block < 2:
      raise UserError(
        "This loss compares prompts with answers to other prompts: it needs "
        "two examples at least, for training as for evaluation, and a "
        f"config.data.batch_size above 1. There are {len(self)} examples in "
        f"batches of {block}."
      )
    return dataclasses.replace(self, mismatch=(block, max_length))

  @property
  def stats(self) -> Mapping[str, Any]:
    """Counts of the whole preparation, whatever was selected of it."""
    return self._manifest["stats"]

  @property
  def rejected_file(self) -> pathlib.Path:
    """JSONL: file, row, kind and reason of every row that was refused."""
    return self.folder / REJECTED

  @property
  def rejected(self) -> bytes:
    """What is in `rejected_file`."""
    return self.rejected_file.read_bytes()

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of all tokens and where each prompt and response stands."""
    text = self._manifest["fingerprint"]
    if self.examples is not None:
      whole = text.encode() + self.examples.tobytes()
      text = hashlib.sha256(whole).hexdigest()
    text = f"{text}-apart" if self.apart else text
    return f"{text}-{self.mismatch}" if self.mismatch else text

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
  def _tokens(self) -> Any:
    """All tokens: what is sliced, and has a length and a largest."""
    return self._arrays["tokens"]

  def _whole(self) -> dict[str, Any]:
    """The arrays of all examples."""
    whole = {**self._arrays, **view.starts(self._arrays)}
    if self.pairing is not None:
      whole |= dataclasses.asdict(self.pairing)
    else:
      whole["score"] = view.wins(whole)
      for name, of in (("ratings", "label"), ("preferences", "better")):
        whole[name] = np.zeros((len(whole[of]), 0), np.float32)
    whole["label"] = view.labels(whole)
    whole["mismatched"] = np.zeros(len(whole["label"]), bool)
    return whole

  @functools.cached_property
  def _view(self) -> Mapping[str, np.ndarray]:
    found = self._whole()
    if self.apart:
      found = view.apart(found)
    if self.examples is not None:
      found = view.select(found, self.examples)
    if self.mismatch is None:
      return found
    block, max_length = self.mismatch
    other = view.partners(view.prompt_numbers(found, self._tokens), block)
    return view.borrow(found, other, max_length)


def _told(kinds: Mapping[str, int], word: str) -> str:
  parts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
  total = sum(kinds.values())
  return f"{total:,} {word} ({parts})" if total else f"none {word}"
