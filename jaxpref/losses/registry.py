"""How a function becomes a loss that `config.loss.name` finds."""

from collections.abc import Callable
import difflib
import inspect
from typing import Any, Literal, NamedTuple, TypeVar

from jaxpref.types import checked

Unit = Literal["pair", "response", "list", "token", "sequence", "step"]
F = TypeVar("F", bound=Callable[..., Any])


class Spec(NamedTuple):
  """What a training loop must know of a loss beside its signature."""

  unit: Unit  # what one value of its output belongs to
  # Whether a value depends on the other entries of the batch (a mean, a sort).
  # Such a loss is taken over the whole step, however it is accumulated.
  coupled: bool
  # The weight of the better responses' negative log-likelihood a token, which
  # the paper adds to the loss. A term of its own, since tokens are its unit.
  nll_weight: float


def loss(
  unit: Unit, *, coupled: bool = False, nll_weight: float = 0.0
) -> Callable[[F], F]:
  """Registers a function under its name, and checks its shapes and dtypes.

  Args: see `Spec`.

  Raises ValueError for a name that another file has taken.
  """

  def register(function: F) -> F:
    name = function.__name__
    known = _LOSSES.get(name)
    # The same file again is a reload, as notebooks do.
    if known is not None and known.__module__ != function.__module__:
      raise ValueError(f"{known.__module__} has a loss {name!r} already")
    _LOSSES[name] = wrapped = checked(function)
    _SPECS[name] = Spec(unit, coupled, nll_weight)
    return wrapped

  return register


def get(name: str) -> Callable[..., Any]:
  """The loss that `config.loss.name` means.

  Raises ValueError that names the nearest known loss.
  """
  if name in _LOSSES:
    return _LOSSES[name]
  close = difflib.get_close_matches(name, _LOSSES, n=3)
  known = ", ".join(close or names())
  raise ValueError(f"there is no loss {name!r}; known: {known}")


def names() -> list[str]:
  """All losses, file by file in the order they are written there."""
  return list(_LOSSES)


def spec(function: Callable[..., Any]) -> Spec:
  """The unit of a loss, and whether it is coupled over the batch."""
  return _SPECS[function.__name__]


def inputs(function: Callable[..., Any]) -> list[str]:
  """Names of the arrays that the caller of a loss must supply."""
  parameters = inspect.signature(function).parameters.values()
  return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


_LOSSES: dict[str, Callable[..., Any]] = {}
_SPECS: dict[str, Spec] = {}
