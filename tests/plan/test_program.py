"""Operations and kept arrays of small programs, against numbers by hand."""

import functools

import jax
import jax.numpy as jnp

from jaxpref.ops.project import project
from jaxpref.plan.program import computed_flops, kept_bytes

W = jax.ShapeDtypeStruct((5, 8, 8), jnp.float32)
X = jax.ShapeDtypeStruct((3, 8), jnp.float32)


def _layers(weights, x, policy):
  def layer(x, w):
    return jnp.tanh(x @ w), None

  if policy:
    layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
  return jnp.sum(jax.lax.scan(layer, x, weights)[0])


def _flops(function, *arguments):
  return computed_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_what_is_computed_again_counts_again():
  product = 2 * 3 * 8 * 8
  keep = jax.checkpoint_policies.everything_saveable
  drop = jax.checkpoint_policies.nothing_saveable
  assert _flops(lambda w, x: _layers(w, x, None), W, X) == 5 * product
  for policy, passes in ((keep, 3), (drop, 4)):
    layers = functools.partial(_layers, policy=policy)
    found = _flops(jax.grad(layers, argnums=(0, 1)), W, X)
    assert found == passes * 5 * product


def test_gradients_that_nothing_needs_do_not_count():
  """Of frozen kernels, which `project` has a rule for."""

  def loss(x, w):
    layers = lambda x, w: (jnp.tanh(project(x, w, 1)), None)
    return jnp.sum(jax.lax.scan(layers, x, w)[0])

  product = 2 * 3 * 8 * 8
  assert _flops(jax.grad(loss), X, W) == 2 * 5 * product
  assert _flops(jax.grad(loss, argnums=(0, 1)), X, W) == 3 * 5 * product


def test_convolutions_and_branches():
  image = jax.ShapeDtypeStruct((2, 9, 9, 4), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)

  def convolve(image, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
      image, kernel, (1, 1), "VALID", dimension_numbers=numbers
    )

  flops = 2 * (2 * 7 * 7 * 6) * (3 * 3 * 4)
  assert _flops(convolve, image, kernel) == flops

  def choose(a, b):
    double = lambda: jnp.sum(convolve(a, b) + convolve(a * 2, b))
    return jax.lax.cond(a[0, 0, 0, 0] > 0, double, lambda: jnp.sum(a))

  assert _flops(choose, image, kernel) == 2 * flops


def test_the_work_of_all_devices_counts():
  mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.P(None, "x")
  inside = jax.shard_map(
    lambda x: x.T @ x, mesh=mesh, in_specs=spec, out_specs=jax.P("x", None)
  )
  x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
  assert _flops(inside, x) == 4 * (2 * 4 * 8 * 4)


def test_arguments_are_not_kept():
  drop = jax.checkpoint_policies.nothing_saveable
  kept = kept_bytes(lambda w, x: _layers(w, x, drop), W, X)
  assert kept == 5 * 3 * 8 * 4  # what goes into each layer
  more = kept_bytes(lambda w, x: _layers(w, x, None), W, X)
  assert more > kept
