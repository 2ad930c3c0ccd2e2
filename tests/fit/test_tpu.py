"""Steps compiled by the TPU's compiler, for chips that are not there."""

import functools
import re

import jax
import pytest

from jaxpref import config, sharding
from jaxpref.data.steps import Steps
from jaxpref.fit.objectives import text_objective
from jaxpref.fit.optimizer import make_optimizer, make_schedule
from jaxpref.fit.step import init_state, make_step, state_shardings
from jaxpref.models.build import define


@pytest.fixture(scope="module")
def mesh(tpu_devices):
  """2 data x 2 fsdp x 2 tensor."""
  auto = (jax.sharding.AxisType.Auto,) * 3
  names = ("data", "fsdp", "tensor")
  return jax.make_mesh((2, 2, 2), names, axis_types=auto, devices=tpu_devices)


def test_a_training_step_compiles_with_splash(mesh, definition, data):
  """A DPO step with a live reference, as on a pod; the policy's remat too."""
  definition = define(definition.config, dtype="bfloat16")
  where = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  optimizer = config.Optimizer()
  schedule = make_schedule(optimizer, 10)
  tx = make_optimizer(optimizer, schedule)
  shapes, places = {"policy": definition.shapes}, {"policy": where}
  shardings = state_shardings(mesh, tx, shapes, places)
  begin = functools.partial(init_state, tx=tx, seed=0, shardings=shardings)
  state = _at(jax.eval_shape(begin, shapes), shardings)
  frozen = {"reference": _at(definition.shapes, where)}
  batch = _batch(Steps(data, batch_size=5, rows=4, row_length=64)[0], mesh)
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


def _at(shapes, shardings):
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    shardings,
  )


def _batch(batch, mesh):
  """Its shapes, spread as `put_batch` would."""
  rows, flat = sharding.batch_sharding(mesh, axis=1), sharding.replicated(mesh)

  def place(path, x):
    where = flat if path[0].name in ("slots", "comparisons") else rows
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  return jax.tree.map_with_path(place, batch)
