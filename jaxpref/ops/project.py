"""A matrix product whose gradients need no transposition."""

from collections.abc import Sequence
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpref import sharding


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(
  x: Float[Array, "..."], kernel: Float[Array, "..."], num_inputs: int
) -> Float[Array, "..."]:
  """Sums x [..., inputs] over a kernel [inputs, outputs]: [..., outputs].

  JAX's own rule finds the kernel's gradient as [outputs, inputs] and transposes
  it. XLA does that for CPU element by element, which takes longer than the
  product itself where a model is wide and its rows are few. Here the gradient
  has the kernel's order from the start.

  Args:
    x: its last `num_inputs` dimensions are the kernel's first.
    kernel: of one dtype with x.
    num_inputs: how many dimensions are summed over.
  """
  return jnp.tensordot(x, kernel, axes=num_inputs)


def _forward(
  x: Array, kernel: Array, num_inputs: int
) -> tuple[Array, tuple[Array, Array]]:
  # Not `project`: the policies of jax.checkpoint look for products.
  return jnp.tensordot(x, kernel, axes=num_inputs), (x, kernel)


def _backward(
  num_inputs: int, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  rows = tuple(range(x.ndim - num_inputs))
  outputs = tuple(range(num_inputs, kernel.ndim))
  grad_outputs = tuple(range(len(rows), grad.ndim))
  if _few(rows=x.shape[: len(rows)], kernel=kernel.shape, inputs=num_inputs):
    x_grad = jnp.tensordot(kernel, grad, axes=(outputs, grad_outputs))
    x_grad = jnp.moveaxis(x_grad, range(num_inputs), range(-num_inputs, 0))
  else:
    x_grad = jnp.tensordot(grad, kernel, axes=(grad_outputs, outputs))
  return x_grad, jnp.tensordot(x, grad, axes=(rows, rows))


def _few(rows: Sequence[int], kernel: Sequence[int], inputs: int) -> bool:
  """Whether to transpose the rows is cheaper than to transpose the kernel.

  Where it has to be one of the two: other devices multiply in any order. The
  rows are those of all devices.
  """
  into, out = math.prod(kernel[:inputs]), math.prod(kernel[inputs:])
  small = math.prod(rows) * (into + out) < into * out
  return small and sharding.current_platform() == "cpu"


project.defvjp(_forward, _backward)
