"""The pass that a cached reference takes over the data, of texts or images."""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from tqdm import tqdm

from jaxpref.data.image_steps import ImageSteps
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError

SAVE_SECONDS = 60.0
"""How often what is computed is written."""

# In nats a token, on average over a batch: packed in another way, 1e-8 was seen
# in float32 and 5e-7 in bfloat16 on CPU. As a share of the mean error of
# images: in another program 1e-6 was seen, in float32 on CPU. Accelerators
# round more in bfloat16.
_DRIFT = {"float32": 1e-4, "bfloat16": 0.02}


def batches_of(
  steps: Steps | ImageSteps, missing: Sequence[int]
) -> Iterator[tuple[int, Any]]:
  """Each missing step with its batch, and a progress bar."""
  batches = tqdm(
    steps.loader(missing),
    total=len(missing),
    desc="reference",
    unit="step",
    disable=not missing,
  )
  return zip(missing, batches, strict=True)


def check_drift(
  apart: float, dtype: str, place: pathlib.Path, *, what: str, unit: str
) -> None:
  """Raises UserError where stored values are not what the reference gives now.

  All processes must call it; each may have found others, and all stop or none.

  Args:
    apart: how far stored values are off those computed anew.
    dtype: of the model's activations.
    place: the folder or file they are in.
    what: they are.
    unit: of `apart`.
  """
  if jax.process_count() > 1:
    apart = np.max(multihost_utils.process_allgather(np.float32(apart)))
  if apart <= _DRIFT[dtype]:
    return
  kind = "folder" if place.is_dir() else "file"
  raise UserError(
    f"{what} in {place} are {apart:.2g} {unit} off what the reference gives "
    f"now ({_DRIFT[dtype]:g} is the most that rounding explains): they were "
    "written by another version or machine, or damaged. Delete that "
    f"{kind} to have them computed anew, or set config.reference.mode=live."
  )
