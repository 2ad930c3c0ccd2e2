"""Meshes of 8 host devices, and where arrays lie on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.errors import UserError


@pytest.mark.parametrize(
  ("sizes", "expected"),
  [
    ((1, -1, 1), (1, 8, 1)),
    ((-1, 1, 1), (8, 1, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 4, 2), (1, 4, 2)),
    ((1, 1, 1), (1, 1, 1)),
    ((3, -1, 1), (3, 2, 1)),  # two devices are left over
  ],
)
def test_make_mesh(sizes, expected):
  mesh = sharding.make_mesh(*sizes)
  assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), expected))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((4, 4, 1), "needs 16 devices, and there are 8"),
    ((1, -1, 16), "needs 16 devices, and there are 8"),
    ((-1, -1, 1), "at most one may be -1"),
    ((0, -1, 1), "each axis must be at least 1"),
    ((1, 1, -2), "each axis must be at least 1"),
  ],
)
def test_meshes_that_cannot_be(sizes, message):
  with pytest.raises(UserError, match=message) as told:
    sharding.make_mesh(*sizes)
  assert "mesh" in str(told.value)


def _shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_param_shardings_name_what_does_not_divide():
  mesh = sharding.make_mesh(1, 2, 4)
  shapes = {"layers": {"attn": {"q": _shape(2, 64, 30, 8)}}}
  axes = {"layers": {"attn": {"q": ("layers", "embed", "heads", "head_dim")}}}
  expected = (
    r"layers/attn/q: axis 'heads' \(30\) is not divisible by mesh axis "
    r"'tensor' \(4\); choose a config\.mesh\.tensor that divides 30"
  )
  with pytest.raises(UserError, match=expected):
    sharding.param_shardings(mesh, shapes, axes)


def test_param_shardings():
  mesh = sharding.make_mesh(1, 2, 4)
  shapes = {"a": _shape(6, 8), "b": {"c": _shape(5)}}
  axes = {"a": ("embed", "mlp"), "b": {"c": ("norm",)}}
  told = sharding.param_shardings(mesh, shapes, axes)
  assert tuple(told["a"].spec) == ("fsdp", "tensor")
  assert told["b"]["c"].is_fully_replicated
  assert told["a"].shard_shape((6, 8)) == (3, 2)


def test_an_axis_without_a_rule_is_a_bug():
  mesh = sharding.make_mesh(1, 1, 1)
  with pytest.raises(KeyError, match="colour"):
    sharding.param_shardings(mesh, {"a": _shape(6)}, {"a": ("colour",)})


def test_every_rule_names_axes_of_the_mesh():
  mesh = sharding.make_mesh(1, 1, 1)
  for rule in sharding.RULES.values():
    names = (rule,) if isinstance(rule, str) else rule or ()
    assert set(names) <= set(mesh.axis_names)


def test_rows_are_spread_over_data_and_fsdp():
  mesh = sharding.make_mesh(2, 2, 2)
  where = sharding.batch_sharding(mesh, axis=1)
  x = jax.device_put(np.arange(24).reshape(3, 8), where)
  assert tuple(where.spec) == (None, ("data", "fsdp"))
  assert x.addressable_shards[0].data.shape == (3, 2)
  assert sharding.replicated(mesh).is_fully_replicated


def test_constrain():
  x = jnp.ones((8, 4, 6))
  axes = ("batch", "length", "vocab")
  assert sharding.constrain(x, axes) is x  # without a mesh
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    y = jax.jit(lambda x: sharding.constrain(x, axes))(x)
  assert tuple(y.sharding.spec) == (("data", "fsdp"), None, "tensor")
  assert y.addressable_shards[0].data.shape == (2, 4, 3)


def test_shards():
  assert sharding.shards("batch") == 1
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    assert sharding.shards("batch") == 4
  with jax.set_mesh(sharding.make_mesh(1, 1, 8)):
    assert sharding.shards("batch") == 1
