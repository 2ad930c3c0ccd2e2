"""Several prepared sources as one: their examples in a row, nothing copied."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from jaxpref.data.cache import Prepared


@dataclasses.dataclass(frozen=True, eq=False)
class Joined(Prepared):
  """Examples of several `Prepared`, whose tokens stay in their own folders.

  Ids are SOURCE/FILE:ROW, and `axes` those that any source has. `folder` is
  the one that holds the folders of all.
  """

  parts: Mapping[str, Prepared] = dataclasses.field(default_factory=dict)

  @property
  def source(self) -> np.ndarray:
    """The number of each example's source."""
    files = [len(part._manifest["files"]) for part in self.parts.values()]
    return np.searchsorted(np.cumsum(files), self._view["file"], side="right")

  @property
  def rejected(self) -> bytes:
    lines = []
    for name, part in self.parts.items():
      for row in map(json.loads, part.rejected.splitlines()):
        lines.append(json.dumps(row | {"file": f"{name}/{row['file']}"}))
    return "".join(line + "\n" for line in lines).encode()

  def summary(self) -> str:
    return "\n".join(
      f"{name}: {part.summary()}" for name, part in self.parts.items()
    )

  @functools.cached_property
  def _manifest(self) -> Mapping[str, Any]:
    parts = {name: part._manifest for name, part in self.parts.items()}
    prints = [(name, part.fingerprint) for name, part in self.parts.items()]
    return {
      "files": [
        f"{name}/{file}"
        for name, part in parts.items()
        for file in part["files"]
      ],
      "axes": list(
        dict.fromkeys(a for p in self.parts.values() for a in p.axes)
      ),
      "fingerprint": hashlib.sha256(json.dumps(prints).encode()).hexdigest(),
      "stats": {
        **_summed([part["stats"] for part in parts.values()]),
        "sources": {
          name: {"examples": len(part), **part.stats}
          for name, part in self.parts.items()
        },
      },
    }

  @functools.cached_property
  def _tokens(self) -> Any:
    return _Chain([part._tokens for part in self.parts.values()])

  def _whole(self) -> dict[str, Any]:
    parts = list(self.parts.values())
    views = [part._view for part in parts]
    # What the numbers of a part are raised by.
    bases: dict[str, Sequence[int]] = {
      "token": _before([len(part._tokens) for part in parts]),
      "file": _before([len(part._manifest["files"]) for part in parts]),
      "response": _before([len(view["label"]) for view in views]),
      "comparison": _before([len(view["better"]) for view in views]),
    }

    def joined(name: str) -> np.ndarray:
      arrays = [view[name] for view in views]
      if base := _NUMBERS.get(name):
        arrays = [
          (array + start).astype(array.dtype)
          for array, start in zip(arrays, bases[base], strict=True)
        ]
      if name.startswith("first_"):  # each ends where the next one begins
        arrays = [array[:-1] for array in arrays[:-1]] + arrays[-1:]
      return np.concatenate(arrays)

    scores = np.concatenate([_scores(part, self.axes) for part in parts], 1)
    return {name: joined(name) for name in _NAMES} | {"scores": scores}


def join(parts: Mapping[str, Prepared]) -> Joined:
  """The examples of all parts, by name, one part after the other."""
  folder = next(iter(parts.values())).folder.parent
  return Joined(folder, parts=dict(parts))


class _Chain:
  """Arrays in a row, of which slices within one of them are taken."""

  def __init__(self, arrays: Sequence[np.ndarray]):
    self._arrays = arrays
    self._bounds = np.cumsum([len(each) for each in arrays])

  def __len__(self) -> int:
    return int(self._bounds[-1])

  def __getitem__(self, here: slice) -> np.ndarray:
    number = int(np.searchsorted(self._bounds, here.start, side="right"))
    base = self._bounds[number] - len(self._arrays[number])
    return self._arrays[number][here.start - base : here.stop - base]

  def max(self) -> int:
    return max(int(each.max()) for each in self._arrays)


def _scores(part: Prepared, axes: Sequence[str]) -> np.ndarray:
  own = dict(zip(part.axes, part.scores, strict=True))
  nothing = np.full(len(part.label), np.nan, np.float32)
  rows = [own.get(axis, nothing) for axis in axes]
  return np.array(rows, np.float32).reshape(len(axes), len(part.label))


def _before(counts: Sequence[int]) -> list[int]:
  return [0, *np.cumsum(counts[:-1]).tolist()]


def _summed(stats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Counts added up; what is no count, such as quantiles, stays with each."""
  return {
    name: sum(each[name] for each in stats)
    for name in stats[0]
    if all(isinstance(each.get(name), int) for each in stats)
  }


# What is numbered over all parts, and by what.
_NUMBERS = {
  "prompt_start": "token", "response_start": "token", "file": "file",
  "first_response": "response", "better": "response", "worse": "response",
  "first_comparison": "comparison",
}  # fmt: skip
_NAMES = (
  *_NUMBERS, "prompt_lengths", "row", "response_lengths", "label",
  "mismatched", "score", "preference", "weight", "ratings", "preferences",
)  # fmt: skip
