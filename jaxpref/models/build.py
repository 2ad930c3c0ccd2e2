"""From a config to parameters: shapes first, arrays straight into shards."""

from typing import Any, NamedTuple

from flax import nnx
import jax
from jaxtyping import DTypeLike

from jaxpref.config import nearest
from jaxpref.errors import UserError
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.model import Llama
from jaxpref.types import Params

_POLICIES = (
  "nothing_saveable",
  "dots_saveable",
  "dots_with_no_batch_dims_saveable",
  "everything_saveable",
)


class Definition(NamedTuple):
  """A model without its arrays; hashable parts are `config`, `graphdef`."""

  config: LlamaConfig
  graphdef: Any
  shapes: dict[str, Any]  # a ShapeDtypeStruct at each leaf
  axes: dict[str, Any]  # a tuple of logical axes at each leaf


def define(
  config: LlamaConfig,
  *,
  dtype: DTypeLike,
  param_dtype: DTypeLike = "float32",
  remat: str = "nothing_saveable",
) -> Definition:
  """The model's structure; nothing is allocated.

  Args:
    config: sizes of the model.
    dtype: of activations.
    param_dtype: of parameters.
    remat: name of a jax.checkpoint policy, '' to keep all activations.
  """
  if remat and remat not in _POLICIES:
    raise UserError(
      f"config.model.remat is {remat!r}. {nearest(remat, _POLICIES)} '' keeps "
      "all activations."
    )

  def make() -> Llama:
    rngs = nnx.Rngs(params=0)
    return Llama(
      config, rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat
    )

  graphdef, state = nnx.split(nnx.eval_shape(make))
  axes = jax.tree.map(
    lambda leaf: leaf.get_metadata()["axes"],
    state,
    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
  )
  shapes = nnx.to_pure_dict(state)
  return Definition(config, graphdef, shapes, nnx.to_pure_dict(axes))


def bind(definition: Definition, params: Params) -> Llama:
  """The model holding these parameters (arrays or tracers)."""
  return nnx.merge(definition.graphdef, params)


def init_params(
  definition: Definition, key: jax.Array, shardings: Any = None
) -> Params:
  """Random parameters, made where they live: see `models.layers`.

  Kernels are normal with std 1/sqrt(fan_in), so that a model of any width
  starts with activations of order one; embeddings have std
  `initializer_range` (0.02), as in Hugging Face, which has that for all.
  """
  dtype = jax.tree.leaves(definition.shapes)[0].dtype

  def make(key: jax.Array) -> Params:
    rngs = nnx.Rngs(params=key)
    model = Llama(
      definition.config, rngs=rngs, dtype=dtype, param_dtype=dtype, remat=""
    )
    return nnx.to_pure_dict(nnx.state(model))

  return jax.jit(make, out_shardings=shardings)(key)
