"""From a config to parameters: shapes first, arrays straight into shards."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
from jaxtyping import DTypeLike

from jaxpref.config import Lora, Prompt, nearest
from jaxpref.errors import UserError
from jaxpref.models.heads import HeadParam, RewardHead, reward_weight
from jaxpref.models.layers import Rngs
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.model import Llama
from jaxpref.models.llama.weights import weights
from jaxpref.models.lora import (
  Path,
  add_adapters,
  find_targets,
  give_dropout_keys,
)
from jaxpref.models.prompt import PromptParam, SoftPrompt, draw_rows
from jaxpref.models.quantized import KINDS, quantize_layers
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

  With an adapter, `shapes` and `axes` are those of what trains, its factors
  and a reward head, and `base` is the model that they are laid over. Virtual
  tokens are an adapter too.
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
  rewards: tuple[str, ...] = ()  # names of what a reward head gives
  storage: str = "float32"  # of the base's parameters, see `define`
  prompt: Prompt = Prompt()


def define(
  config: Any,
  *,
  dtype: DTypeLike,
  param_dtype: str = "float32",
  remat: str = "nothing_saveable",
  attention: str = "auto",
  lora: Lora = Lora(),  # noqa: B008
  rewards: tuple[str, ...] = (),
  prompt: Prompt = Prompt(),  # noqa: B008
) -> Definition:
  """The model's structure; nothing is allocated.

  Args:
    config: sizes of the model, of a type in `_FAMILIES`.
    dtype: of activations.
    param_dtype: of parameters; an adapter's are float32. 'int8' and 'nf4'
      quantize the kernels of the layers, and the rest is bfloat16.
    remat: name of a jax.checkpoint policy, '' to keep all activations.
    attention: the back end of packed rows, see `ops.attention`.
    lora: the adapter; none where the rank is 0.
    rewards: names of the axes of a reward head, in place of the model's own;
      () for none.
    prompt: the virtual tokens; none where the length is 0. Not beside `lora`.

  Raises UserError for a policy that there is not, and for an adapter whose
  targets the model does not have.
  """
  if remat and remat not in _POLICIES:
    raise UserError(
      f"config.model.remat is {remat!r}. {nearest(remat, _POLICIES)} '' keeps "
      "all activations."
    )
  if rewards:  # a tied model has no head of its own
    config = dataclasses.replace(config, tie_word_embeddings=True)
  make = functools.partial(
    _make,
    config,
    rewards=rewards,
    dtype=dtype,
    param_dtype=param_dtype,
    remat=remat,
  )
  model = nnx.eval_shape(lambda: make(rngs=Rngs(params=0)))
  table = _FAMILIES[type(config)].weights(config, model)
  if rewards:
    table.append(reward_weight(config.hidden_size, len(rewards)))
  base = Definition(
    config,
    tuple(table),
    *_parts(model, nnx.Param),
    attention=attention,
    rewards=rewards,
    storage=param_dtype,
  )
  assert not (lora.rank and prompt.length)  # `config_checks` refuses before
  if not (lora.rank or prompt.length):
    return base
  targets = tuple(lora_targets(base, lora)) if lora.rank else ()
  adapted = functools.partial(make, lora=lora, targets=targets, prompt=prompt)
  model = nnx.eval_shape(lambda: adapted(rngs=Rngs(params=0)))
  graphdef, shapes, axes = _parts(model, _BESIDE)
  return base._replace(
    graphdef=graphdef,
    shapes=shapes,
    axes=axes,
    lora=lora,
    base=base,
    targets=targets,
    prompt=prompt,
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
  Factors of an adapter: see `models.lora`; reward heads: `models.heads`;
  virtual tokens are copies of random rows of these embeddings.
  """
  config, lora, prompt = definition.config, definition.lora, definition.prompt

  def make(key: jax.Array) -> Params:
    model = _make(
      config,
      Rngs(params=key),
      lora=lora,
      targets=definition.targets,
      rewards=definition.rewards,
      prompt=prompt,
      dtype="float32",
      param_dtype=definition.storage,
      remat="",
    )
    if prompt.length:
      rows = draw_rows(key, prompt.length, config.vocab_size)
      model.prompt.embedding[...] = model.embed_text(rows[None])[0]
    # With an adapter, the compiler drops the rest of the model again.
    kinds = _BESIDE if definition.base else nnx.Param
    return nnx.to_pure_dict(nnx.state(model, kinds))

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


# What trains beside a frozen base.
_BESIDE = (nnx.LoRAParam, HeadParam, PromptParam)


def _make(
  config: Any,
  rngs: Rngs,
  *,
  lora: Lora = Lora(),  # noqa: B008
  targets: Sequence[Path] = (),
  rewards: tuple[str, ...],
  param_dtype: str,
  prompt: Prompt = Prompt(),  # noqa: B008
  **options: Any,
) -> Any:
  quantized = param_dtype in KINDS
  options["param_dtype"] = "bfloat16" if quantized else param_dtype
  model: Any = _FAMILIES[type(config)].make(config, rngs=rngs, **options)
  if quantized:
    quantize_layers(model, param_dtype)
  add_adapters(model, targets, lora, rngs)
  if rewards:
    model.score = RewardHead(config.hidden_size, len(rewards))
  if prompt.length:
    model.prompt = SoftPrompt(prompt.length, config.hidden_size)
  return model


def _parts(model: nnx.Module, kind: Any) -> tuple[Any, Any, Any]:
  """The graph of a model; shapes and axes of the variables of these kinds."""
  graphdef, *states = nnx.split(model, kind, ...)
  state = states[0]
  axes = jax.tree.map(
    lambda leaf: leaf.get_metadata()["axes"],
    state,
    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
  )
  return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes)
