"""The product of rows and a kernel, and its gradients."""

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.ops.project import project

SHAPES = [
  # rows, inputs, outputs: more rows than a kernel's size makes worth moving
  ((2, 3), (4,), (5,)),
  ((50,), (2, 3), (4,)),
  ((50,), (4,), (2, 3)),
  # and fewer
  ((2,), (16,), (20,)),
  ((1, 2), (4, 4), (5, 6)),
  ((), (16,), (16,)),
]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_gradients_are_those_of_tensordot(rows, inputs, outputs):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], rows + inputs)
  kernel = jax.random.normal(keys[1], inputs + outputs)
  weights = jax.random.normal(keys[2], rows + outputs)

  def loss(multiply, x, kernel):
    return jnp.sum(weights * multiply(x, kernel, len(inputs)))

  graded = jax.value_and_grad(loss, argnums=(1, 2))
  ours, plain = (
    graded(multiply, x, kernel) for multiply in (project, jnp.tensordot)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, plain
  )


def test_the_kernels_gradient_is_not_transposed():
  x, kernel = jnp.ones((50, 16)), jnp.ones((16, 20))

  def moved(multiply):
    grad = jax.grad(lambda kernel: jnp.sum(multiply(x, kernel, 1)))
    equations = jax.make_jaxpr(grad)(kernel).jaxpr.eqns
    return [
      each.invars[0].aval.size
      for each in equations
      if each.primitive.name == "transpose"
    ]

  assert kernel.size not in moved(project)
  assert kernel.size in moved(jnp.tensordot)


@pytest.mark.parametrize(
  ("platform", "turned"), [("cpu", True), ("tpu", False)]
)
def test_few_rows_are_transposed_in_place_of_the_kernel(
  monkeypatch, platform, turned
):
  """On CPU, where it has to be one of the two."""
  monkeypatch.setattr(sharding, "current_platform", lambda: platform)
  x, kernel = jnp.ones((2, 16)), jnp.ones((16, 20))
  grad = jax.grad(lambda x: jnp.sum(project(x, kernel, 1)))
  products = _products(jax.make_jaxpr(grad)(x))
  back = [each for each in products if kernel.shape in _shapes(each)][-1]
  assert (_shapes(back)[0] == kernel.shape) == turned


def test_a_policy_of_checkpoints_sees_the_product():
  x, kernel = jnp.ones((50, 16)), jnp.ones((16, 20))
  policies = jax.checkpoint_policies

  def count(policy):
    wave = jax.checkpoint(
      lambda x: jnp.sum(jnp.sin(project(x, kernel, 1))), policy=policy
    )
    return str(jax.make_jaxpr(jax.grad(wave))(x)).count("dot_general[")

  kept, again = count(policies.dots_saveable), count(policies.nothing_saveable)
  assert kept == again - 1


def _products(jaxpr):
  """Of it and of what it calls."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      yield equation
    for each in jex.core.jaxprs_in_params(equation.params):
      yield from _products(each)


def _shapes(equation):
  return [each.aval.shape for each in equation.invars]
