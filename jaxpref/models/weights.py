"""Where each tensor of a file stands in our parameters, read both ways."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Weight(NamedTuple):
  """One row of a model's table.

  torch holds a projection as [out, in] and a convolution as [out, in, *window],
  heads flat; ours is [in, *out], [*in, out] or [*window, in, out], heads apart.
  Everything else differs in shape at most.
  """

  name: str  # in the file; {} is the number of the layer
  path: tuple[str, ...]  # in our nested dict; a stacked leaf has layers first
  shape: tuple[int, ...]  # in the file
  transposed: bool
  optional: bool = False  # zero where a file lacks it

  @property
  def stacked(self) -> bool:
    return "{}" in self.name

  def ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Of the file's tensor, one layer of our leaf, in its shape."""
    if self.transposed:
      tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
    return tensor.reshape(shape)

  def theirs(self, array: np.ndarray) -> np.ndarray:
    """Of one layer of our leaf, the file's tensor."""
    if not self.transposed:
      return np.ascontiguousarray(array.reshape(self.shape))
    out, into, *window = self.shape
    array = array.reshape(*window, into, out)
    last = len(window)
    return np.ascontiguousarray(array.transpose(last + 1, last, *range(last)))


def at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  """What stands at the end of a path in a nested dict."""
  for key in path:
    tree = tree[key]
  return tree
