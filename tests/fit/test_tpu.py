"""Steps compiled by the TPU's compiler, for chips that are not there."""

import re

import jax
import pytest

from jaxpref import config, sharding
from jaxpref.data.steps import Steps
from jaxpref.fit.objectives import text_objective
from jaxpref.fit.optimizer import make_optimizer, make_schedule
from jaxpref.fit.put import batch_places
from jaxpref.fit.step import make_step, state_shapes, state_shardings
from jaxpref.models.build import define


@pytest.fixture(scope="module")
def mesh(tpu_devices):
  return sharding.make_mesh(data=2, fsdp=2, tensor=2, devices=tpu_devices)


def test_a_training_step_compiles_with_splash(mesh, definition, data):
  """A DPO step with a live reference, as on a pod; the policy's remat too."""
  definition = define(definition.config, dtype="bfloat16")
  where = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  optimizer = config.Optimizer()
  schedule = make_schedule(optimizer, 10)
  tx = make_optimizer(optimizer, schedule)
  shapes, places = {"policy": definition.shapes}, {"policy": where}
  shardings = state_shardings(mesh, tx, shapes, places)
  state = state_shapes(shapes, tx, shardings)
  frozen = {"reference": sharding.placed(definition.shapes, where)}
  batch = Steps(data, batch_size=5, rows=4, row_length=64)[0]
  batch = sharding.placed(batch, batch_places(mesh, batch))
  objective = text_objective(definition, config.Loss(), head_block=16)
  step = make_step(objective, tx, schedule, shardings)
  with jax.default_matmul_precision("default"), jax.set_mesh(mesh):
    text = step.lower(state, frozen, batch).compile().as_text()
  # The forward pass once for the reference, once for the policy and once more
  # to go back; two kernels to go back; each in a loop over the layers, and for
  # each length class.
  classes = len(batch.expand)
  for name, times in {"fwd": 3, "dq": 1, "dkv": 1}.items():
    found = re.findall(rf"%splash_mha_{name}_\S* = ", text)
    assert len(found) == times * classes
