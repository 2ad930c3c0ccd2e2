"""Preference objectives as pure functions of float32 arrays.

Each returns one unreduced value a unit (pair, token ...), takes exactly what
its signature names, and names its paper. Hyper-parameters are keywords.
"""

from collections.abc import Callable
import difflib

from jaxpref.losses.pairwise import dpo, ipo
from jaxpref.losses.supervised import sft

__all__ = ["dpo", "get", "ipo", "sft"]


def get(name: str) -> Callable[..., object]:
  """The loss that `config.loss.name` means.

  Raises ValueError that names the nearest known loss.
  """
  known = [each for each in __all__ if each != "get"]
  if name in known:
    return globals()[name]
  close = difflib.get_close_matches(name, known, n=1)
  names = close or known
  raise ValueError(f"there is no loss {name!r}; known: {', '.join(names)}")
