"""Preference objectives as pure functions of float32 arrays.

Each returns one unreduced value a unit (pair, response, list, token ...),
takes exactly what its signature names, and names its paper. Arrays come first,
hyper-parameters are keywords. docs/losses.md is the list to choose from.

Every public function of every file of this folder can be had from here, and
every one under `@loss` by `config.loss.name`: nothing lists them.
"""

from collections.abc import Callable
import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

from jaxpref.losses.registry import Unit, get, inputs, names, spec

if TYPE_CHECKING:  # for editors and type checkers, which run no loops
  from jaxpref.losses.advantages import *
  from jaxpref.losses.denoising_policy import *
  from jaxpref.losses.difficulty import *
  from jaxpref.losses.diffusion import *
  from jaxpref.losses.divergence import *
  from jaxpref.losses.dpa_rag import *
  from jaxpref.losses.flow import *
  from jaxpref.losses.group_policy import *
  from jaxpref.losses.judge import *
  from jaxpref.losses.kl import *
  from jaxpref.losses.listwise import *
  from jaxpref.losses.mapo import *
  from jaxpref.losses.metrics import *
  from jaxpref.losses.optimal_transport import *
  from jaxpref.losses.pairwise import *
  from jaxpref.losses.pairwise_absolute import *
  from jaxpref.losses.pairwise_labels import *
  from jaxpref.losses.policy_gradient import *
  from jaxpref.losses.pso import *
  from jaxpref.losses.rank_metrics import *
  from jaxpref.losses.ranked import *
  from jaxpref.losses.ranked_likelihood import *
  from jaxpref.losses.ratios import *
  from jaxpref.losses.reference_free import *
  from jaxpref.losses.reward import *
  from jaxpref.losses.reward_axes import *
  from jaxpref.losses.supervised import *
  from jaxpref.losses.token_weighted import *
  from jaxpref.losses.unpaired import *


def _public_functions() -> dict[str, Callable[..., Any]]:
  found: dict[str, Callable[..., Any]] = {}
  for file in pkgutil.iter_modules(__path__):
    if file.name == "registry":
      continue
    module = importlib.import_module(f"{__name__}.{file.name}")
    for name, each in inspect.getmembers(module, inspect.isfunction):
      if each.__module__ == module.__name__ and not name.startswith("_"):
        if name in found:
          raise ImportError(f"two files of {__name__} define {name}")
        found[name] = each
  return found


_FUNCTIONS = _public_functions()
globals().update(_FUNCTIONS)

__all__ = ["Unit", "get", "inputs", "names", "spec", *_FUNCTIONS]
