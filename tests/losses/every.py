"""Inputs for any loss, made from the annotations of its signature."""

from collections.abc import Callable
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import losses


def make_inputs(loss: Callable[..., Any], seed: int = 0) -> dict[str, Any]:
  """Float32, int32 and boolean arrays of the shapes that a loss declares."""
  rng = np.random.default_rng(seed)
  sizes: dict[str, int] = {}
  made = {}
  for name in losses.inputs(loss):
    annotation = inspect.signature(loss).parameters[name].annotation
    shape = _shape(annotation, sizes)
    made[name] = jnp.asarray(_values(rng, name, annotation, shape))
  return made


def value_shape(loss: Callable[..., Any], inputs: dict[str, Any]):
  """The shape of the values, by the names of axes in the signature."""
  signature = inspect.signature(loss)
  sizes: dict[str, int] = {}
  for name, x in inputs.items():
    words = signature.parameters[name].annotation.dim_str.split()
    sizes |= {w.lstrip("*"): n for w, n in zip(words, x.shape, strict=True)}
  return _shape(signature.return_annotation, sizes)


def call(loss: Callable[..., Any], inputs: dict[str, Any], **options: Any):
  return loss(*inputs.values(), **options)


def is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)


def float_grads(loss: Callable[..., Any], inputs: dict[str, Any], keep=None):
  """Gradient of the sum over the (kept) units, by each float input."""
  floats = {name: x for name, x in inputs.items() if is_float(x)}

  def total(given):
    values = call(loss, inputs | given)
    return jnp.sum(values if keep is None else jnp.where(keep, values, 0.0))

  return jax.grad(total)(floats)


def _shape(annotation: Any, sizes: dict[str, int]) -> tuple[int, ...]:
  shape: list[int] = []
  for word in annotation.dim_str.split():
    name = word.lstrip("*")
    many = 6 if name in ("pairs", "responses") else 5
    few = {"tokens": 7, "items": 4}.get(name, 3)
    size = many if word.startswith("*") else few
    shape.append(sizes.setdefault(name, size))
  return tuple(shape)


def _values(rng, name: str, annotation: Any, shape: tuple[int, ...]):
  kinds = set(annotation.dtypes)
  if kinds & {"bool", "bool_"}:
    return _mask(rng, name, shape)
  if "int32" in kinds:
    return rng.integers(0, 2, shape).astype(np.int32)
  if name == "preference":
    return rng.choice([0.5, 1.0], shape).astype(np.float32)
  values = rng.normal(size=shape).astype(np.float32)
  if name.endswith(("_kl", "weight")):
    return np.abs(values)
  # Log-probabilities are negative, and their ratios near 1.
  return -np.abs(values) - 0.1 if name.endswith("logp") else values


def _mask(rng, name: str, shape: tuple[int, ...]):
  """Prefixes of the trailing axis; of one axis, some with both kinds in it."""
  if len(shape) < 2:
    return np.arange(shape[0] if shape else 1) % 3 != 1
  lengths = rng.integers(2, shape[-1] + 1, (*shape[:-1], 1))
  lengths[0], lengths[1] = shape[-1], shape[-1] - 1
  return np.arange(shape[-1]) < lengths
