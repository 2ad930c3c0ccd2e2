"""The arrays of a prepared folder, and of what is selected and taken of it.

A view is a dict of them by name: some have an entry an example, some one a
response, some one a comparison.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def starts(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Where prompts and responses begin: each prompt, then its responses."""
  prompts = offsets(arrays["prompt_lengths"])
  responses = offsets(arrays["response_lengths"])
  first = arrays["first_response"]
  return {
    "prompt_start": prompts[:-1] + responses[first[:-1]],
    "response_start": responses[:-1] + np.repeat(prompts[1:], np.diff(first)),
  }


def labels(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """The data's labels, and what comparisons say of responses without one."""
  own = arrays["label"]
  better, worse = np.zeros(len(own), bool), np.zeros(len(own), bool)
  sure = arrays["preference"] != 0.5  # a tie makes neither desirable
  better[arrays["better"][sure]] = worse[arrays["worse"][sure]] = True
  compared = np.where(better == worse, -1, better)
  return np.where(own < 0, compared, own).astype(np.int32)


def wins(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """By how many comparisons more each response is the better than the worse."""
  score = np.full(len(arrays["label"]), np.nan, np.float32)
  sides = arrays["better"], arrays["worse"]
  for side in sides:
    score[side] = 0.0
  margin = 2.0 * arrays["preference"] - 1.0
  for side, sign in zip(sides, (1.0, -1.0), strict=True):
    np.add.at(score, side, sign * margin)
  return score


def prompt_numbers(view: Mapping[str, np.ndarray], tokens: Any) -> np.ndarray:
  """A number for each example, the same where the prompts are."""
  seen: dict[bytes, int] = {}
  spans = zip(view["prompt_start"], view["prompt_lengths"], strict=True)
  texts = (tokens[start : start + length].tobytes() for start, length in spans)
  return np.array([seen.setdefault(text, len(seen)) for text in texts])


def partners(prompts: np.ndarray, block: int) -> np.ndarray:
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


def borrow(
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


def apart(view: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
    "preferences": view["preferences"],
    "weight": view["weight"],
    "better": 2 * bounds[:-1],
    "worse": 2 * bounds[:-1] + 1,
    "first_response": 2 * bounds,
    "first_comparison": bounds,
  }


def select(
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
    "preferences": view["preferences"][compared],
    "weight": view["weight"][compared],
    "first_response": first_response,
    "first_comparison": first_comparison,
  }


_OF_EXAMPLES = ("prompt_lengths", "prompt_start", "file", "row")
_OF_RESPONSES = (
  "response_lengths", "response_start", "label", "mismatched", "score",
  "ratings",
)  # fmt: skip


def _ranges(
  first: np.ndarray, examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What belongs to the examples, and where each one's part begins."""
  counts = np.diff(first)[examples]
  starts = offsets(counts)
  steps = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
  return np.repeat(first[examples], counts) + steps, starts.astype(np.int32)


def offsets(lengths: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
