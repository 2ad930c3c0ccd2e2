"""Low-rank adapters: a few weights that train beside those that stay.

Reference: Hu et al. 2021 (https://arxiv.org/abs/2106.09685); rsLoRA:
Kalajdzievski 2023 (https://arxiv.org/abs/2312.03732). Initial values and
outputs are those of the library PEFT.
"""

from collections.abc import Iterator, Mapping, Sequence
import math
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.models.layers import Linear, Rngs
from jaxpref.models.quantized import whole_kernel
from jaxpref.types import Params

Path = tuple[str, ...]


class LoraLinear(Linear):
  """y = x kernel + bias + scale (x a) b, in place of a Linear.

  The kernel and the bias are those of the layer it replaces and keep their
  names, so that a model's own weights lie where they do without an adapter.
  `a` is drawn uniformly from ±1/sqrt(fan_in) and `b` is zero, so that training
  begins with the model as it was. Of a stack of layers, both have the axis
  "layers" first.
  """

  dropout_key: "DropoutKey"  # there only where `bind` was given a key

  def __init__(
    self,
    replaced: Linear,
    *,
    rank: int,
    scale: float,
    dropout: float,
    rngs: Rngs,
  ):
    self.kernel, self.bias = replaced.kernel, replaced.bias
    self.num_inputs, self.dtype = replaced.num_inputs, replaced.dtype
    if hasattr(replaced, "kernel_scale"):
      self.kernel_scale = replaced.kernel_scale
    axes, shape = self.kernel.get_metadata()["axes"], self.kernel.shape
    first = 1 if axes[0] == "layers" else 0
    split = first + self.num_inputs
    inputs = shape[first:split]
    bound = 1.0 / math.sqrt(math.prod(inputs))  # kaiming uniform, a = sqrt(5)
    drawn = jax.random.uniform(
      rngs.params(), (*shape[:split], rank), jnp.float32, -bound, bound
    )
    # Always float32: updates are small beside the weights.
    zeros = jnp.zeros((*shape[:first], rank, *shape[split:]), jnp.float32)
    self.lora_a = nnx.LoRAParam(drawn, axes=(*axes[:split], "rank"))
    self.lora_b = nnx.LoRAParam(
      zeros, axes=(*axes[:first], "rank", *axes[split:])
    )
    self.scale, self.dropout = scale, dropout

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    y = super().__call__(x)
    x = self._drop(x.astype(self.dtype))
    a, b = (each[...].astype(self.dtype) for each in (self.lora_a, self.lora_b))
    low = jnp.tensordot(x, a, axes=self.num_inputs)
    return y + jnp.tensordot(self.scale * low, b, axes=1)

  def _drop(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    variable = getattr(self, "dropout_key", None)
    if variable is None:
      return x
    kept = 1.0 - self.dropout
    key = jax.random.wrap_key_data(variable[...])
    mask = jax.random.bernoulli(key, kept, x.shape)
    return jnp.where(mask, x / kept, jnp.zeros((), x.dtype))


class DropoutKey(nnx.Variable):
  """uint32 key data of a layer's dropout; of a stack, a key a layer."""


def scaling(settings: config.Lora) -> float:
  """What the product of the factors is multiplied with."""
  divisor = math.sqrt(settings.rank) if settings.rs else settings.rank
  return settings.alpha / divisor


def find_targets(
  names: Mapping[Path, tuple[str, int]], pattern: str
) -> list[Path]:
  """Paths of the layers that a pattern names.

  Args:
    names: of each stacked linear layer, its name in Hugging Face's model,
      where {} stands for the number of the layer, and how many there are.
    pattern: a regular expression that matches the whole of a name, or all of
      it after some dot: `q_proj|v_proj`, `mlp[.].*`.

  Raises UserError for a pattern that is none, and for one that matches no
  layer or only some of a stack, with the names that there are.
  """
  ends = [name.partition("{}.")[2] for name, _ in names.values()]
  told = ", ".join(dict.fromkeys(ends))
  try:
    compiled = re.compile(rf"(?:.*\.)?(?:{pattern})")
  except re.error as error:
    raise UserError(
      f"config.model.lora.targets is {pattern!r}, which is not a regular "
      f"expression: {error}. Write for example 'q_proj|v_proj', or '.*_proj' "
      f"for all of {told}."
    ) from error
  found = []
  for path, (name, num_layers) in names.items():
    numbered = [name.format(layer) for layer in range(num_layers)]
    matches = [bool(compiled.fullmatch(each)) for each in numbered]
    if any(matches) and not all(matches):
      raise UserError(
        f"config.model.lora.targets is {pattern!r}, which names {name} in some "
        "layers only. Layers are stacked, so that all of them get an adapter "
        f"or none; choose among {told}."
      )
    if matches[0]:
      found.append(path)
  if not found:
    raise UserError(
      f"config.model.lora.targets is {pattern!r}, which matches no layer that "
      f"can have an adapter. These can: {told}. Write for example "
      "'q_proj|v_proj', or '.*_proj' for all of them."
    )
  return found


def add_adapters(
  model: nnx.Module,
  targets: Sequence[Path],
  settings: config.Lora,
  rngs: Rngs,
) -> None:
  """Puts a LoraLinear in the place of each target, in the model itself."""
  for *parents, name in targets:
    parent: Any = model
    for part in parents:
      parent = getattr(parent, part)
    layer = LoraLinear(
      getattr(parent, name),
      rank=settings.rank,
      scale=scaling(settings),
      dropout=settings.dropout,
      rngs=rngs,
    )
    setattr(parent, name, layer)


def give_dropout_keys(model: nnx.Module, key: Key[Array, ""]) -> None:
  """Lets a model's adapters drop inputs, in this trace of the model."""
  for number, (layer, stacked) in enumerate(_adapters(model)):
    own = jax.random.fold_in(key, number)
    keys = jax.random.split(own, stacked) if stacked else own
    if layer.dropout:
      layer.dropout_key = DropoutKey(jax.random.key_data(keys))


def overlay(base: Params, factors: Params) -> dict[str, Any]:
  """The nested dict of both; arrays are shared, not copied."""
  both = dict(base)
  for name, part in factors.items():
    inner = isinstance(part, Mapping)
    both[name] = overlay(base.get(name, {}), part) if inner else part
  return both


def merged_kernel(
  layer: Params, settings: config.Lora, *, stacked: bool
) -> Float[Array, "..."]:
  """kernel + scaling a b of one layer's parameters, in the kernel's dtype.

  That of a quantized kernel is bfloat16.
  """

  def merge(kernel: Array, a: Array, b: Array) -> Array:
    change = scaling(settings) * jnp.tensordot(a, b, axes=1)
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)

  merge = jax.jit(jax.vmap(merge) if stacked else merge)
  with jax.default_matmul_precision("highest"):
    kernel = whole_kernel(layer, jnp.bfloat16)
    return merge(kernel, layer["lora_a"], layer["lora_b"])


def _adapters(model: nnx.Module) -> Iterator[tuple[LoraLinear, int]]:
  """Each adapter, and how many layers are stacked in it; 0 if it is alone."""
  for _, node in nnx.iter_graph(model):
    if isinstance(node, LoraLinear):
      axes = node.lora_a.get_metadata()["axes"]
      yield node, node.lora_a.shape[0] if axes[0] == "layers" else 0
