"""Held-out evaluation."""

from collections.abc import Callable, Mapping
import math
from typing import Any

import jax
import numpy as np

from jaxpref.data.image_steps import ImageSteps
from jaxpref.data.steps import Steps
from jaxpref.fit.metrics import averages
from jaxpref.fit.step import Evaluate, TrainState
from jaxpref.types import Params


def held_out(
  evaluate: Evaluate,
  frozen: Mapping[str, Params],
  steps: Steps | ImageSteps,
  put: Callable[[Any], Any],
) -> Callable[[TrainState], dict[str, float]]:
  """A function from a state to the averages over all held-out examples.

  A loss that is coupled over the batch is taken batch by batch, as in training.
  Names begin with `eval/`; accuracies come with their standard error, that of
  a share p of n independent comparisons: sqrt(p (1 - p) / n). Of an average
  over several axes of each it is the most that it can be.
  """

  def run(state: TrainState) -> dict[str, float]:
    results = [
      evaluate(state, frozen, put(batch))
      for batch in steps.loader(range(steps.steps_per_epoch))
    ]
    summed = jax.tree.map(lambda *each: np.sum(each), *jax.device_get(results))
    values = {f"eval/{name}": x for name, x in averages(summed).items()}
    for name, term in summed.items():
      if "/accuracies" in name and term.count > 0:
        share = values[f"eval/{name}"]
        error = math.sqrt(share * (1.0 - share) / float(term.count))
        values[f"eval/{name}_stderr"] = error
    return values

  return run
