"""The table of tensors of a model whose layers have the names of the file."""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx

from jaxpref.models.layers import Linear
from jaxpref.models.lora import Path
from jaxpref.models.quantized import SCALE
from jaxpref.models.sdxl.clip_config import ClipTextConfig
from jaxpref.models.sdxl.layers import Conv
from jaxpref.models.weights import Weight

_KINDS = {"kernel": "weight", "scale": "weight", "table": "weight"}
_DIFFUSERS = {
  "to_out": "to_out.0",
  "into": "net.0.proj",
  "out": "net.2",
  "transformer_blocks": "transformer_blocks.{}",
}


def diffusers_weights(config: Any, model: nnx.Module) -> list[Weight]:
  """Of a UNet or VAE of diffusers, in the order of the paths."""
  del config
  return table(
    model, lambda path: [_DIFFUSERS.get(part, part) for part in path]
  )


def clip_weights(config: Any, model: nnx.Module) -> list[Weight]:
  """Of a tower of CLIP in transformers."""
  text = isinstance(config, ClipTextConfig)
  tower = "text_model" if text else "vision_model"

  def rename(path: Path) -> list[str]:
    if not path or path[0].endswith("_embedding"):
      return [tower, "embeddings", *path]
    if path[0] == "layers":
      return [tower, "encoder", "layers.{}", *path[1:]]
    return list(path) if path[0].endswith("_projection") else [tower, *path]

  return table(model, rename)


def table(
  model: nnx.Module, rename: Callable[[Path], list[str]]
) -> list[Weight]:
  """A row for each parameter; scales of quantized ones are in no file.

  Args:
    model: a module, arrays or shapes in it.
    rename: a layer's name in the file, in parts, of its path.
  """
  rows = {}
  for path, layer in nnx.iter_graph(model):
    for kind, leaf in vars(layer).items() if _is_layer(layer) else ():
      if isinstance(leaf, nnx.Param) and kind != SCALE:
        full = (*map(str, path), kind)
        name = ".".join([*rename(full[:-1]), _KINDS.get(kind, kind)])
        shape, transposed = _file_shape(layer, kind, leaf)
        rows[full] = Weight(name, full, shape, transposed)
  return [rows[path] for path in sorted(rows)]


def _is_layer(node: Any) -> bool:
  return isinstance(node, nnx.Module) and not isinstance(node, nnx.Dict)


def _file_shape(
  layer: nnx.Module, kind: str, leaf: nnx.Param
) -> tuple[tuple[int, ...], bool]:
  """A parameter's shape in the file, and whether it is transposed there."""
  stacked = leaf.get_metadata()["axes"][0] == "layers"
  shape = leaf.shape[1:] if stacked else leaf.shape
  if isinstance(layer, Conv) and kind == "kernel":
    return (shape[-1], shape[-2], *shape[:-2]), True
  if isinstance(layer, Linear) and kind == "kernel":
    into, out = shape[: layer.num_inputs], shape[layer.num_inputs :]
    return (math.prod(out), math.prod(into)), True
  if isinstance(layer, Linear):
    return (math.prod(shape),), False
  return tuple(shape), False
