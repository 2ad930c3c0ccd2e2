"""Which examples are kept for evaluation."""

from collections.abc import Sequence
import hashlib

import numpy as np

from jaxpref.data.cache import Prepared
from jaxpref.errors import UserError


def split_holdout(
  prepared: Prepared, count: int, seed: int
) -> tuple[Prepared, Prepared]:
  """Examples to train on, and exactly `count` others to evaluate on.

  Which are held out depends on a hash of (seed, prompt): examples of one
  prompt stay on one side, unless `count` cannot be had in that way.

  Raises UserError unless some are left to train on.
  """
  total = len(prepared)
  if not 0 <= count < total:
    raise UserError(
      f"data.eval_holdout is {count}, and there are {total} usable examples; "
      f"hold out at most {total - 1}, so that some are left to train on."
    )
  groups: dict[bytes, list[int]] = {}
  for i in range(total):
    prompt = repr(seed).encode() + b":" + prepared.prompt(i).tobytes()
    groups.setdefault(hashlib.sha256(prompt).digest(), []).append(i)
  ordered = [groups[key] for key in sorted(groups)]
  held = np.zeros(total, bool)
  held[_take_groups(ordered, count)] = True
  return prepared.select(np.flatnonzero(~held)), prepared.select(
    np.flatnonzero(held)
  )


def _take_groups(groups: Sequence[list[int]], count: int) -> list[int]:
  """`count` members of whole groups, of early ones where it can be."""
  taken: list[int] = []
  for group in groups:
    if len(taken) + len(group) <= count:
      taken += group
  if len(taken) == count:
    return taken
  return _exact_groups(groups, count) or [i for g in groups for i in g][:count]


def _exact_groups(groups: Sequence[list[int]], count: int) -> list[int] | None:
  """Whole groups that sum to `count`: a subset sum, sizes as bits."""
  reachable = [1]
  for group in groups:
    sums = reachable[-1] | (reachable[-1] << len(group))
    reachable.append(sums & ((2 << count) - 1))
    if sums >> count & 1:
      break
  else:
    return None
  taken: list[int] = []
  for before, group in reversed(list(zip(reachable, groups, strict=False))):
    rest = count - len(taken)
    if not before >> rest & 1:
      taken += group
  return taken
