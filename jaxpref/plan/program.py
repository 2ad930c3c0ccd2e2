"""What a program computes and keeps, by its jaxpr, whatever its model."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend.core import Var
from jax.interpreters import partial_eval


def computed_flops(jaxpr: Any) -> float:
  """Operations of all products and convolutions, over all devices.

  What is computed again to save memory counts as often as it is, and so do
  pads. A loop's body counts as often as it runs; of branches the dearest does.
  What no result needs is left out, as compilers do: a frozen weight's gradient.
  """
  live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _sum(live)


def _sum(jaxpr: Any) -> float:
  return sum((_flops(equation) for equation in jaxpr.eqns), 0.0)


def kept_bytes(function: Callable[..., Any], *arguments: Any) -> float:
  """What a function keeps for the gradient of its first argument.

  Args:
    function: gives a scalar.
    arguments: pytrees of arrays or their shapes. They are not counted.
  """

  def kept(first: Any, *others: Any) -> list[Any]:
    _, back = jax.vjp(lambda first: function(first, *others), first)
    return jax.tree.leaves(back)

  jaxpr = jax.make_jaxpr(kept)(*arguments).jaxpr
  variables = {x for x in jaxpr.outvars if isinstance(x, Var)}
  found = variables - {*jaxpr.invars, *jaxpr.constvars}
  return float(sum(_bytes(x.aval) for x in found))


def _flops(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name == "pallas_call" and params.get("cost_estimate"):
    return float(params["cost_estimate"].flops)
  inner = [_sum(each) for each in _inner(params)]
  if name == "scan":
    return params["length"] * sum(inner, 0.0)
  if name == "cond":
    return max(inner)
  if name == "shard_map":  # its body is what one device does
    mesh, manual = params["mesh"], params["newly_manual_axes"]
    return math.prod(mesh.shape[axis] for axis in manual) * sum(inner, 0.0)
  return sum(inner, 0.0)


def _inner(params: Any) -> list[Any]:
  """The jaxprs among an equation's parameters."""
  values = [
    each
    for value in params.values()
    for each in (value if isinstance(value, (tuple, list)) else [value])
  ]
  opened = [getattr(value, "jaxpr", value) for value in values]
  return [each for each in opened if hasattr(each, "eqns")]


def _dot(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: Any) -> float:
  kernel = equation.invars[1].aval.shape
  features = equation.params["dimension_numbers"].rhs_spec[0]
  depth = math.prod(kernel) / kernel[features]
  return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _bytes(aval: Any) -> int:
  return math.prod(aval.shape) * aval.dtype.itemsize
