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

from jaxtyping import Bool, Float32, Int32, Int64
import numpy as np

from jaxpref.data.arrays import read_arrays
from jaxpref.data.text import EVENTS
from jaxpref.errors import UserError

ARRAYS, MANIFEST, REJECTED = (
  "data.safetensors",
  "manifest.json",
  "rejected.jsonl",
)


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
    return _offsets(self.response_lengths)

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
    view = {**self._arrays, **_starts(self._arrays)}
    if self.pairing is not None:
      view |= dataclasses.asdict(self.pairing)
    else:
      view["score"] = _wins(view)
    view["label"] = _labels(view)
    view["mismatched"] = np.zeros(len(view["label"]), bool)
    return view

  @functools.cached_property
  def _view(self) -> Mapping[str, np.ndarray]:
    view = self._whole()
    if self.apart:
      view = _apart(view)
    if self.examples is not None:
      view = _select(view, self.examples)
    if self.mismatch is None:
      return view
    block, max_length = self.mismatch
    other = _partners(_prompt_numbers(view, self._tokens), block)
    return _borrow(view, other, max_length)


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


def _labels(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """The data's labels, and what comparisons say of responses without one."""
  own = arrays["label"]
  better, worse = np.zeros(len(own), bool), np.zeros(len(own), bool)
  sure = arrays["preference"] != 0.5  # a tie makes neither desirable
  better[arrays["better"][sure]] = worse[arrays["worse"][sure]] = True
  compared = np.where(better == worse, -1, better)
  return np.where(own < 0, compared, own).astype(np.int32)


def _wins(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """By how many comparisons more each response is the better than the worse."""
  score = np.full(len(arrays["label"]), np.nan, np.float32)
  sides = arrays["better"], arrays["worse"]
  for side in sides:
    score[side] = 0.0
  margin = 2.0 * arrays["preference"] - 1.0
  for side, sign in zip(sides, (1.0, -1.0), strict=True):
    np.add.at(score, side, sign * margin)
  return score


def _prompt_numbers(view: Mapping[str, np.ndarray], tokens: Any) -> np.ndarray:
  """A number for each example, the same where the prompts are."""
  seen: dict[bytes, int] = {}
  spans = zip(view["prompt_start"], view["prompt_lengths"], strict=True)
  texts = (tokens[start : start + length].tobytes() for start, length in spans)
  return np.array([seen.setdefault(text, len(seen)) for text in texts])


def _partners(prompts: np.ndarray, block: int) -> np.ndarray:
  """The example whose responses each one borrows; see `with_mismatched`."""
  other = np.arange(len(prompts))
  # One that would be alone at the end joins the block before it.
  cuts = range(block, len(prompts) - 1, block)
  for here in np.split(np.arange(len(prompts)), cuts):
    _, first, which, counts = np.unique(
      prompts[here], return_index=True, return_inverse=True, return_counts=True
    )
    # With alike prompts in a row, a step over the most of them leads to
    # another one, unless they are more than half of the block.
    order = here[np.argsort(first[which], kind="stable")]
    other[order] = np.roll(order, counts.max() % len(here) or 1)
  return other


def _borrow(
  view: Mapping[str, np.ndarray], other: np.ndarray, max_length: int
) -> dict[str, Any]:
  """Adds to each example the responses of `other`, cut to fit."""
  first = view["first_response"]
  borrowed, bounds = _ranges(first, other)
  own = np.arange(first[-1]) + np.repeat(bounds[:-1], np.diff(first))
  taken = np.zeros(first[-1] + bounds[-1], np.int64)
  new = np.ones(len(taken), bool)
  new[own] = False
  taken[own], taken[new] = np.arange(first[-1]), borrowed
  room = max_length - np.repeat(view["prompt_lengths"], np.diff(bounds))
  lengths = view["response_lengths"][taken]
  lengths[new] = np.minimum(lengths[new], room)
  return {
    **view,
    **{name: view[name][taken] for name in _OF_RESPONSES},
    "scores": view["scores"][:, taken],
    "response_lengths": lengths,
    "label": np.where(new, -1, view["label"][taken]).astype(np.int32),
    "score": np.where(new, np.float32(np.nan), view["score"][taken]),
    "mismatched": new,
    "first_response": first + bounds,
    "better": own[view["better"]].astype(np.int32),
    "worse": own[view["worse"]].astype(np.int32),
  }


def _apart(view: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """An example for each comparison, the better of its two responses first."""
  counts = np.diff(view["first_comparison"])
  example = np.repeat(np.arange(len(counts)), counts)
  responses = np.stack([view["better"], view["worse"]], axis=1).reshape(-1)
  bounds = np.arange(len(example) + 1, dtype=np.int32)
  return {
    **{name: view[name][example] for name in _OF_EXAMPLES},
    **{name: view[name][responses] for name in _OF_RESPONSES},
    "scores": view["scores"][:, responses],
    "preference": view["preference"],
    "weight": view["weight"],
    "better": 2 * bounds[:-1],
    "worse": 2 * bounds[:-1] + 1,
    "first_response": 2 * bounds,
    "first_comparison": bounds,
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
    "scores": view["scores"][:, responses],
    "better": view["better"][compared] + moved,
    "worse": view["worse"][compared] + moved,
    "preference": view["preference"][compared],
    "weight": view["weight"][compared],
    "first_response": first_response,
    "first_comparison": first_comparison,
  }


_OF_EXAMPLES = ("prompt_lengths", "prompt_start", "file", "row")
_OF_RESPONSES = (
  "response_lengths", "response_start", "label", "mismatched", "score",
)  # fmt: skip


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
