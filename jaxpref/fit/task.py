"""What a run of text and one of images do each in their own way."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any, NamedTuple

from jaxpref import config
from jaxpref.data.prepared import Prepared
from jaxpref.fit.objectives import Objective
from jaxpref.models.build import Definition
from jaxpref.types import Params


class Task(NamedTuple):
  """All that `run` needs to train, whatever the model."""

  settings: config.Config  # with the reference's mode
  definition: Definition
  load: Callable[[Any], Params]  # what trains, into its shards
  base: str  # a digest of the weights below an adapter; '' without one
  train: Prepared
  test: Prepared | None
  steps: Any
  test_steps: Any
  put: Callable[[Any], Any]
  objective: Callable[..., Objective]  # (training=)
  open_reference: Callable[[], tuple[Mapping[str, Params], Callable[[], None]]]
  flops: Callable[[int], float]  # useful operations of the step of a number
  preview: Callable[[int, Params], dict[str, float]]  # before and after
  export: Callable[[Params, Params], pathlib.Path]  # what trained, the whole
