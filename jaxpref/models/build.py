"""From a config to parameters: shapes first, arrays straight into shards."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
from jaxtyping import DTypeLike

from jaxpref.config import Lora, nearest
from jaxpref.errors import UserError
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.model import Llama
from jaxpref.models.llama.weights import weights
from jaxpref.models.lora import (
  Path,
  add_adapters,
  find_targets,
  give_dropout_keys,
)
from jaxpref.models.sdxl.clip_config import ClipTextConfig, ClipVisionConfig
from jaxpref.models.sdxl.clip_text import ClipText
from jaxpref.models.sdxl.clip_vision import ClipVision
from jaxpref.models.sdxl.config import UNetConfig
from jaxpref.models.sdxl.unet import UNet
from jaxpref.models.sdxl.vae import Vae
from jaxpref.models.sdxl.vae_config import VaeConfig
from jaxpref.models.sdxl.weights import clip_weights, diffusers_weights
from jaxpref.models.weights import Weight, at
from jaxpref.types import Params

_POLICIES = (
  "nothing_saveable",
  "dots_saveable",
  "dots_with_no_batch_dims_saveable",
  "everything_saveable",
)


class Family(NamedTuple):
  """How models of one type of config are made and stand in files."""

  make: Callable[..., nnx.Module]  # (config, rngs, dtype, param_dtype, remat)
  weights: Callable[[Any, nnx.Module], list[Weight]]


_FAMILIES: dict[type, Family] = {
  LlamaConfig: Family(Llama, lambda config, model: weights(config)),
  UNetConfig: Family(UNet, diffusers_weights),
  VaeConfig: Family(Vae, diffusers_weights),
  ClipTextConfig: Family(ClipText, clip_weights),
  ClipVisionConfig: Family(ClipVision, clip_weights),
}


class Definition(NamedTuple):
  """A model without its arrays; hashable parts are `config`, `graphdef`.

  With an adapter, `shapes` and `axes` are those of its factors, which train,
  and `base` is the model that they are laid over.
  """

  config: Any
  table: tuple[Weight, ...]  # of the model without an adapter
  graphdef: Any
  shapes: dict[str, Any]  # a ShapeDtypeStruct at each leaf
  axes: dict[str, Any]  # a tuple of logical axes at each leaf
  lora: Lora = Lora()
  base: "Definition | None" = None
  attention: str = "auto"  # the back end, see `ops.attention`
  targets: tuple[Path, ...] = ()  # the layers that have an adapter


def define(
  config: Any,
  *,
  dtype: DTypeLike,
  param_dtype: DTypeLike = "float32",
  remat: str = "nothing_saveable",
  attention: str = "auto",
  lora: Lora = Lora(),  # noqa: B008
) -> Definition:
  """The model's structure; nothing is allocated.

  Args:
    config: sizes of the model, of a type in `_FAMILIES`.
    dtype: of activations.
    param_dtype: of parameters; an adapter's are float32.
    remat: name of a jax.checkpoint policy, '' to keep all activations.
    attention: the back end of packed rows, see `ops.attention`.
    lora: the adapter; none where the rank is 0.

  Raises UserError for a policy that there is not, and for an adapter whose
  targets the model does not have.
  """
  if remat and remat not in _POLICIES:
    raise UserError(
      f"config.model.remat is {remat!r}. {nearest(remat, _POLICIES)} '' keeps "
      "all activations."
    )
  family = _FAMILIES[type(config)]
  make = functools.partial(
    family.make, config, dtype=dtype, param_dtype=param_dtype, remat=remat
  )
  model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(params=0)))
  table = tuple(family.weights(config, model))
  parts = _parts(model, nnx.Param)
  base = Definition(config, table, *parts, attention=attention)
  if not lora.rank:
    return base
  targets = lora_targets(base, lora)

  def make_adapted() -> nnx.Module:
    rngs = nnx.Rngs(params=0)
    adapted = make(rngs=rngs)
    add_adapters(adapted, targets, lora, rngs)
    return adapted

  model = nnx.eval_shape(make_adapted)
  parts = _parts(model, nnx.LoRAParam)
  return Definition(
    config, table, *parts, lora, base, attention, tuple(targets)
  )


def bind(
  definition: Definition, params: Params, dropout_key: Any = None
) -> Any:
  """The model holding these parameters (arrays or tracers).

  Args:
    definition: the model.
    params: all parameters; with an adapter, `lora.overlay` of both parts.
    dropout_key: a key, with which an adapter drops inputs; None drops none.
  """
  model = nnx.merge(definition.graphdef, params)
  if dropout_key is not None and definition.lora.dropout:
    give_dropout_keys(model, dropout_key)
  return model


def init_params(
  definition: Definition, key: jax.Array, shardings: Any = None
) -> Params:
  """Random values of `definition.shapes`, made where they live.

  Kernels are normal with std 1/sqrt(fan_in), so that a model of any width
  starts with activations of order one; embeddings have std
  `initializer_range` (0.02), as in Hugging Face, which has that for all.
  Factors of an adapter: see `models.lora`.
  """
  config, lora = definition.config, definition.lora
  whole = definition.base or definition
  dtype = jax.tree.leaves(whole.shapes)[0].dtype

  def make(key: jax.Array) -> Params:
    rngs = nnx.Rngs(params=key)
    build = _FAMILIES[type(config)].make
    model = build(config, rngs=rngs, dtype=dtype, param_dtype=dtype, remat="")
    if not lora.rank:
      return nnx.to_pure_dict(nnx.state(model))
    add_adapters(model, definition.targets, lora, rngs)
    # The compiler drops the rest of the model again.
    return nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))

  return jax.jit(make, out_shardings=shardings)(key)


def lora_targets(base: Definition, lora: Lora) -> list[Path]:
  """Paths of the layers that `lora.targets` names; see `find_targets`."""
  layers = {
    weight.path[:-1]: (
      weight.name.removesuffix(".weight"),
      at(base.shapes, weight.path).shape[0],
    )
    for weight in base.table
    if weight.path[-1] == "kernel" and weight.stacked
  }
  return find_targets(layers, lora.targets)


def _parts(model: nnx.Module, kind: type[nnx.Variable]) -> tuple[Any, Any, Any]:
  """The graph of a model; shapes and axes of the variables of one kind."""
  graphdef, *states = nnx.split(model, kind, ...)
  state = states[0]
  axes = jax.tree.map(
    lambda leaf: leaf.get_metadata()["axes"],
    state,
    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
  )
  return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes)
