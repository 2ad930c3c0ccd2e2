"""Frozen kernels in eight or four bits, by the library qwix.

A kernel keeps its place and its shape; beside it stands `kernel_scale`, a
number for each tile of it. Only linear layers of stacked blocks are kept so:
embeddings, norms, biases, convolutions and what stands alone stay bfloat16.

Reference: NormalFloat, Dettmers et al. 2023 (https://arxiv.org/abs/2305.14314).
"""

from collections.abc import Iterable, Mapping
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32

from jaxpref.types import Params

KINDS = ("int8", "nf4")
SCALE = "kernel_scale"  # its name beside the kernel
TILE = 64  # inputs that share a scale: half a bit each


def quantize(
  kernel: Float[Array, "..."], axis: int, kind: str
) -> tuple[Array, Float32[Array, "..."]]:
  """The values of a kernel, and the scales of its tiles.

  Tiles are cut along one axis, each of the largest size up to TILE that divides
  it; every entry of the other axes has its own.
  """
  import qwix  # takes a second, and few runs need it

  found = qwix.quantize(
    kernel.astype(jnp.float32),
    jnp.int8 if kind == "int8" else kind,
    channelwise_axes=[each for each in range(kernel.ndim) if each != axis],
    tiled_axes={axis: _tile(kernel.shape[axis])},
  )
  return found.qvalue, found.scale


def dequantize(
  values: Array, scale: Float32[Array, "..."]
) -> Float32[Array, "..."]:
  """The kernel that these stand for."""
  import qwix

  return qwix.dequantize(qwix.QArray(values, scale, qtype=_kind(values)))


def quantize_layers(model: nnx.Module, kind: str) -> None:
  """Quantizes the kernels of a model's stacked linear layers in place."""
  linears = [x for _, x in nnx.iter_graph(model) if hasattr(x, "num_inputs")]
  for layer in linears:
    axes = layer.kernel.get_metadata()["axes"]
    if axes[0] != "layers":
      continue
    at = layer.num_inputs  # the last of the inputs, after the layers
    values, scale = quantize(layer.kernel[...], at, kind)
    scale_axes = (*axes[:at], "tiles", *axes[at + 1 :])
    layer.kernel = nnx.Param(values, axes=axes)
    layer.kernel_scale = nnx.Param(scale, axes=scale_axes)


def quantize_each(
  kernels: Iterable[Float[Array, "..."]],
  like: Mapping[str, Any],
  shardings: Mapping[str, Any] | None,
) -> dict[str, jax.Array]:
  """The parameters of a stack, of one layer's kernel after the other.

  Args:
    kernels: of each layer, taken as needed.
    like: shapes of the stack's `kernel` and `kernel_scale`.
    shardings: the same of where they go; None puts them on one device.
  """
  names = ("kernel", SCALE)
  values, scale = (like[name] for name in names)
  sizes = zip(values.shape[1:], scale.shape[1:], strict=True)
  # Where all sizes agree, each number is a tile, along any axis.
  cut = [axis for axis, (size, tiles) in enumerate(sizes) if size != tiles]
  convert = functools.partial(_quantize, axis=[*cut, 0][0], kind=_kind(values))
  parts = [convert(kernel) for kernel in kernels]
  places = shardings and tuple(shardings[name] for name in names)
  stack = jax.jit(_stack, out_shardings=places)
  return dict(zip(names, stack(parts), strict=True))


def whole_kernel(layer: Params, dtype: DTypeLike) -> Array:
  """The kernel among a layer's parameters, of `dtype` where quantized."""
  if SCALE not in layer:
    return layer["kernel"]
  return dequantize(layer["kernel"], layer[SCALE]).astype(dtype)


_quantize = jax.jit(quantize, static_argnames=("axis", "kind"))


def _stack(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
  values, scales = zip(*parts, strict=True)
  return jnp.stack(values), jnp.stack(scales)


def _kind(values: Any) -> str:
  return "nf4" if values.dtype == jnp.uint4 else "int8"


def _tile(size: int) -> int:
  return max(tile for tile in range(1, TILE + 1) if size % tile == 0)
