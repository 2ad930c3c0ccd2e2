"""Layers that every port is built of; each parameter names its axes.

Parameters are held in `dtypes.params` and used in `dtypes.compute`; means,
softmax and logits are float32. Initial weights are normal with std
1/sqrt(fan_in).
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32, Int32

from jaxpref.models.quantized import dequantize
from jaxpref.ops.project import project
from jaxpref.sharding import constrain

Init = Callable[[jax.Array, Sequence[int], DTypeLike], jax.Array]


class Dtypes(NamedTuple):
  compute: jnp.dtype
  params: jnp.dtype


class Rngs:
  """Another key at each call of `params`; the keys of `nnx.Rngs(params=...)`.

  Those count in an array. As it changes while a model's shapes are traced, JAX
  words an error for nobody to read: three quarters of the time of a UNet's.
  """

  def __init__(self, params: jax.Array | int):
    self._key = jax.random.key(params) if isinstance(params, int) else params
    self._calls = itertools.count()

  def params(self) -> jax.Array:
    return jax.random.fold_in(self._key, next(self._calls))


def normal(std: float) -> Init:
  """Draws in float32, so that a narrower dtype rounds the same numbers."""

  def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

  return init


def ones(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
  del key
  return jnp.ones(shape, dtype)


def zeros(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
  del key
  return jnp.zeros(shape, dtype)


def param(
  rngs: Rngs,
  shape: Sequence[int],
  axes: Sequence[str],
  init: Init,
  dtype: DTypeLike,
) -> nnx.Param:
  """A parameter whose dimensions have the logical `axes`."""
  if len(shape) != len(axes):
    raise ValueError(f"shape {shape} and axes {axes} differ in length")
  return nnx.Param(init(rngs.params(), shape, dtype), axes=tuple(axes))


class Linear(nnx.Module):
  """y = x kernel + bias over the last `len(inputs)` dimensions of x.

  `inputs` and `outputs` are dicts from logical axis to size, so that a
  projection to heads keeps them apart: {"embed": D} -> {"heads": H,
  "head_dim": D/H} has a kernel [D, H, D/H].
  """

  def __init__(
    self,
    inputs: dict[str, int],
    outputs: dict[str, int],
    *,
    use_bias: bool,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    both = (*inputs.items(), *outputs.items())
    axes, shape = zip(*both, strict=True)
    init = normal(1.0 / math.sqrt(math.prod(inputs.values())))
    self.kernel = param(rngs, shape, axes, init, dtypes.params)
    shape, axes = tuple(outputs.values()), tuple(outputs)
    # Assigned once: NNX decides then whether an attribute holds arrays.
    self.bias = (
      param(rngs, shape, axes, zeros, dtypes.params) if use_bias else None
    )
    self.num_inputs = len(inputs)
    self.dtype = dtypes.compute

  kernel_scale: nnx.Param  # there only where the kernel is quantized

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    kernel = self.kernel[...]
    if hasattr(self, "kernel_scale"):
      kernel = dequantize(kernel, self.kernel_scale[...])
    kernel = kernel.astype(self.dtype)
    y = project(x.astype(self.dtype), kernel, self.num_inputs)
    return y if self.bias is None else y + _lift(self.bias, y)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) in float32, rounded, then times the scale.

  Llama rounds to the compute dtype before the scale; Gemma does after, see
  `OffsetRMSNorm`.
  """

  init: Init = staticmethod(ones)

  def __init__(
    self,
    size: int,
    *,
    eps: float,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    self.scale = param(rngs, (size,), ("norm",), self.init, dtypes.params)
    self.eps = eps
    self.dtype = dtypes.compute

  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    x = self._unit(x).astype(self.dtype)
    return x * _lift(self.scale, x)

  def _unit(self, x: Float[Array, "... D"]) -> Float32[Array, "... D"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps)


class OffsetRMSNorm(RMSNorm):
  """x / sqrt(mean(x^2) + eps) (1 + scale) in float32, then rounded (Gemma)."""

  init: Init = staticmethod(zeros)

  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    x = self._unit(x)
    return (x * (1.0 + _lift(self.scale, x))).astype(self.dtype)


class Embed(nnx.Module):
  """A table of vectors, one a token id."""

  def __init__(
    self,
    num: int,
    size: int,
    *,
    std: float,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    axes = ("vocab", "vocab_embed")
    self.table = param(rngs, (num, size), axes, normal(std), dtypes.params)
    self.dtype = dtypes.compute

  def __call__(
    self, ids: Int32[Array, "rows tokens"]
  ) -> Float[Array, "rows tokens D"]:
    # Each device holds some columns of the table. It looks them up for the rows
    # of all who share the table, and then they change columns for rows: else
    # the compiler gathers the table, and sums its gradient on every device.
    ids = constrain(ids, ("lookup_batch", "length"))
    x = jnp.take(self.table[...], ids, axis=0).astype(self.dtype)
    x = constrain(x, ("lookup_batch", "length", "vocab_embed"))
    return constrain(x, ("batch", "length", "act_embed"))


def stack_layers(
  make: Callable[..., nnx.Module], num_layers: int, rngs: Rngs
) -> nnx.Module:
  """Builds `num_layers` copies of `make(rngs=...)`, stacked on axis 0."""
  keys = jax.random.split(rngs.params(), num_layers)
  stack = jax.vmap(lambda key: make(rngs=Rngs(params=key)))(keys)
  for _, leaf in nnx.iter_graph(stack):
    if isinstance(leaf, nnx.Variable):
      leaf.set_metadata(axes=("layers", *leaf.get_metadata()["axes"]))
  return stack


Call = Callable[[Any, Any, Any], tuple[Any, Any]]


def scan_layers(
  stack: nnx.Module,
  call: Call | Sequence[Call],
  x: Any,
  per_layer: Any = None,
  *,
  remat: str = "nothing_saveable",
) -> tuple[Any, Any]:
  """Runs a stack in order: (x, out) = call(layer, x, item).

  Args:
    stack: layers of `stack_layers`.
    call: one layer; what it closes over is the same for all of them. Or a
      function for each layer, the same object where layers do the same: a
      loop then goes over whole periods (Gemma 3: five local layers and a
      global one), so that what differs is static.
    x: the residual stream, or a pytree with it.
    per_layer: a pytree (cache, adapters) with the layer axis first; `item` is
      a layer's slice of it.
    remat: name of a jax.checkpoint policy, applied to each layer; '' keeps
      all activations.

  Returns: x after the last layer, and the outs stacked on axis 0.
  """
  graphdef, params = nnx.split(stack)
  num_layers = jax.tree.leaves(params)[0].shape[0]
  calls = [call] * num_layers if callable(call) else call
  start, outs = 0, []
  for period, repeats in _periods(calls):
    size = len(period)
    end = start + size * repeats
    # A part of the layers is a copy of their parameters, in models whose
    # number of layers is no multiple of the period.
    cut = functools.partial(_cut, slice(start, end), size)
    xs = jax.tree.map(cut, (params, per_layer))
    places = range(size) if size > 1 else [...]
    steps = [
      _step(graphdef, each, place, remat)
      for each, place in zip(period, places, strict=True)
    ]
    x, out = jax.lax.scan(functools.partial(_run, steps), x, xs)
    if size > 1:
      out = jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), out)
    outs.append(out)
    start = end
  if len(outs) == 1:
    return x, outs[0]
  return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


def _cut(layers: slice, size: int, leaf: jax.Array) -> jax.Array:
  """Some of the layers of a leaf, as [repeats, size, ...], or [repeats, ...].

  For an axis of size 1 XLA copies the parameters from a layout to its equal.
  """
  part = leaf[layers]
  return part.reshape(-1, size, *leaf.shape[1:]) if size > 1 else part


def _step(graphdef: Any, call: Call, place: Any, remat: str) -> Callable:
  """One layer of a period, which takes the parameters of all of it.

  Not its own slice of them: that would be kept for the backward pass.
  """

  def step(x: Any, xs: Any) -> tuple[Any, Any]:
    layer_params, item = jax.tree.map(lambda leaf: leaf[place], xs)
    return call(nnx.merge(graphdef, layer_params), x, item)

  if not remat:
    return step
  policy = getattr(jax.checkpoint_policies, remat)
  return jax.checkpoint(step, policy=policy, prevent_cse=False)


def _run(steps: Sequence[Callable], x: Any, xs: Any) -> Any:
  if len(steps) == 1:
    return steps[0](x, xs)
  outs = []
  for step in steps:
    x, out = step(x, xs)
    outs.append(out)
  return x, jax.tree.map(lambda *parts: jnp.stack(parts), *outs)


def _periods(calls: Sequence[Call]) -> list[tuple[Sequence[Call], int]]:
  """Rows of calls and how often each repeats, with few calls in all.

  Each of them is compiled: a period that repeats from the start and runs of
  equal calls after it, or runs alone.
  """

  def runs(calls: Sequence[Call]) -> list[tuple[Sequence[Call], int]]:
    groups = [list(group) for _, group in itertools.groupby(calls)]
    return [(group[:1], len(group)) for group in groups]

  choices = [runs(calls)]
  for size in range(2, len(calls) // 2 + 1):
    period, repeats = calls[:size], 1
    while calls[size * repeats : size * (repeats + 1)] == period:
      repeats += 1
    choices.append([(period, repeats), *runs(calls[size * repeats :])])
  return min(choices, key=lambda parts: sum(len(part[0]) for part in parts))


def _lift(weight: nnx.Param, y: jax.Array) -> jax.Array:
  # Explicit, since tests let rank promotion raise.
  array = weight[...].astype(y.dtype)
  return array.reshape((1,) * (y.ndim - array.ndim) + array.shape)
