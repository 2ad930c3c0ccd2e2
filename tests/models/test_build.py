"""From a config to shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.models.build import bind, define, init_params
from jaxpref.models.llama.config import LlamaConfig

CONFIG = LlamaConfig.from_arch(
  {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "mlp_bias": True,
  }
)

# Of each parameter, the mesh axes of its dimensions.
GOLDEN = {
  "embed/table": ("tensor", "fsdp"),
  "head/kernel": ("fsdp", "tensor"),
  "layers/attention/k/bias": (None, "tensor", None),
  "layers/attention/k/kernel": (None, "fsdp", "tensor", None),
  "layers/attention/o/bias": (None, "fsdp"),
  "layers/attention/o/kernel": (None, "tensor", None, "fsdp"),
  "layers/attention/q/bias": (None, "tensor", None),
  "layers/attention/q/kernel": (None, "fsdp", "tensor", None),
  "layers/attention/v/bias": (None, "tensor", None),
  "layers/attention/v/kernel": (None, "fsdp", "tensor", None),
  "layers/attention_norm/scale": (None, None),
  "layers/mlp/down/bias": (None, "fsdp"),
  "layers/mlp/down/kernel": (None, "tensor", "fsdp"),
  "layers/mlp/gate/bias": (None, "tensor"),
  "layers/mlp/gate/kernel": (None, "fsdp", "tensor"),
  "layers/mlp/up/bias": (None, "tensor"),
  "layers/mlp/up/kernel": (None, "fsdp", "tensor"),
  "layers/mlp_norm/scale": (None, None),
  "norm/scale": (None,),
}


def _by_name(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def test_partition_specs_are_golden():
  mesh = sharding.make_mesh(1, 4, 2)
  definition = define(CONFIG, dtype="float32")
  specs = _by_name(
    sharding.param_shardings(mesh, definition.shapes, definition.axes)
  )
  assert {name: tuple(s.spec) for name, s in specs.items()} == GOLDEN


def test_heads_that_do_not_divide_are_named():
  mesh = sharding.make_mesh(1, 2, 4)
  definition = define(CONFIG, dtype="float32")
  with pytest.raises(UserError, match=r"attention/k/.*'kv_heads' \(2\)"):
    sharding.param_shardings(mesh, definition.shapes, definition.axes)


def test_parameters_are_made_in_their_shards():
  mesh = sharding.make_mesh(1, 4, 2)
  definition = define(CONFIG, dtype="float32")
  shardings = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  params = init_params(definition, jax.random.key(0), shardings)
  jax.tree.map(
    lambda x, s: np.testing.assert_equal(x.sharding.spec, s.spec),
    params,
    shardings,
  )
  # The same numbers on any mesh.
  alone = init_params(definition, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, alone)


def test_definition_holds_shapes_and_axes_alike():
  definition = define(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
  axes = _by_name(
    jax.tree.map(
      lambda names: " ".join(names),
      definition.axes,
      is_leaf=lambda x: isinstance(x, tuple),
    )
  )
  shapes = _by_name(definition.shapes)
  assert shapes.keys() == axes.keys()
  for name, shape in shapes.items():
    assert len(shape.shape) == len(axes[name].split())
    assert shape.dtype == jnp.bfloat16
  hash((definition.config, definition.graphdef))


def test_initial_scales():
  """Kernels at 1/sqrt(fan_in), embeddings at initializer_range, norms 1."""
  params = _by_name(
    init_params(define(CONFIG, dtype="float32"), jax.random.key(0))
  )
  fan_in = {"q": 32, "o": 32, "gate": 32, "down": CONFIG.intermediate_size}
  for name, size in fan_in.items():
    part = "attention" if len(name) == 1 else "mlp"
    kernel = np.asarray(params[f"layers/{part}/{name}/kernel"])
    # 3,072 numbers or more: their std is within 1.3 % (one sigma).
    np.testing.assert_allclose(kernel.std() * size**0.5, 1.0, rtol=0.06)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01  # layers differ
  np.testing.assert_allclose(params["embed/table"].std(), 0.02, rtol=0.06)
  assert (params["norm/scale"] == 1.0).all()
  assert (params["layers/mlp/up/bias"] == 0.0).all()


def test_bind_takes_plain_dicts():
  definition = define(CONFIG, dtype="float32")
  params = init_params(definition, jax.random.key(0))
  assert type(params) is dict
  model = bind(definition, params)
  np.testing.assert_array_equal(
    model.layers.mlp.up.kernel[...], params["layers"]["mlp"]["up"]["kernel"]
  )


def test_an_unknown_remat_policy_names_the_nearest():
  with pytest.raises(UserError, match="Did you mean 'dots_saveable'"):
    define(CONFIG, dtype="float32", remat="dot_saveable")
