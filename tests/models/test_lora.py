"""Low-rank adapters: what they add, where they stand, what they drop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.config import Lora
from jaxpref.errors import UserError
from jaxpref.models.build import bind, define, init_params, lora_targets
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.lora import merged_kernel, overlay, scaling
from jaxpref.ops.attention import padded_attention

CONFIG = LlamaConfig.from_arch(
  {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "initializer_range": 32**-0.5,
  }
)
ALL = ("attention/q", "attention/k", "attention/v", "attention/o",
       "mlp/gate", "mlp/up", "mlp/down")  # fmt: skip


@functools.cache
def _make(*, param_dtype="float32", trained=True, **lora):
  """A definition, its base's weights, and factors that change something."""
  definition = define(
    CONFIG,
    dtype="float32",
    param_dtype=param_dtype,
    lora=Lora(**{"rank": 4, **lora}),
  )
  base = init_params(definition.base, jax.random.key(0))
  factors = init_params(definition, jax.random.key(1))
  if trained:
    leaves, tree = jax.tree.flatten(factors)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    draw = lambda key, x: x + 0.1 * jax.random.normal(key, x.shape)
    factors = jax.tree.unflatten(tree, map(draw, keys, leaves))
  return definition, base, factors


@functools.partial(jax.jit, static_argnums=0)
def _hidden(definition, params, key):
  tokens = jnp.arange(20, dtype=jnp.int32).reshape(2, 10)
  model = bind(definition[0], params, key)
  attend = padded_attention(jnp.ones((2, 10), bool))
  return model(tokens, tokens % 10, attend)[0]


class _Static(tuple):
  """A definition as a static argument, the same one only."""

  __hash__ = object.__hash__
  __eq__ = object.__eq__


def _forward(definition, params, key=None):
  return np.asarray(_hidden(_Static([definition]), params, key))


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_a_new_adapter_changes_nothing(param_dtype):
  definition, base, factors = _make(param_dtype=param_dtype, trained=False)
  np.testing.assert_array_equal(
    _forward(definition, overlay(base, factors)),
    _forward(definition.base, base),
  )


@pytest.mark.parametrize("rs", [False, True])
def test_merged_weights_do_the_same(rs):
  definition, base, factors = _make(rs=rs, alpha=6.0)
  both = overlay(base, factors)
  whole = jax.tree.map(lambda x: x, base)
  for target in ALL:
    part, name = target.split("/")
    whole["layers"][part][name]["kernel"] = merged_kernel(
      both["layers"][part][name], definition.lora, stacked=True
    )
  ours, merged = _forward(definition, both), _forward(definition.base, whole)
  # Measured: 3e-6, of hidden states of up to 3.
  np.testing.assert_allclose(ours, merged, atol=3e-5)
  assert np.abs(ours - _forward(definition.base, base)).max() > 0.3
  # The other scale would be seen.
  other, *_ = _make(rs=not rs, alpha=6.0)
  assert np.abs(_forward(other, both) - merged).max() > 0.1


def test_scaling():
  assert scaling(Lora(rank=4, alpha=8.0)) == 2.0
  assert scaling(Lora(rank=4, alpha=8.0, rs=True)) == 4.0


def test_only_factors_train():
  definition, _, factors = _make(param_dtype="bfloat16")
  assert set(factors) == {"layers"}
  leaves = jax.tree_util.tree_leaves_with_path(factors)
  names = {jax.tree_util.keystr(path, separator="/") for path, _ in leaves}
  assert len(names) == 2 * len(ALL)
  assert {path[-1].key for path, _ in leaves} == {"lora_a", "lora_b"}
  # Updates are small; the base may be narrow, they may not.
  assert {x.dtype for _, x in leaves} == {np.dtype("float32")}
  shapes = jax.tree.leaves(definition.base.shapes)
  assert {x.dtype for x in shapes} == {jnp.dtype("bfloat16")}


def test_initial_factors():
  """Uniform in ±1/sqrt(fan_in) and zero, another draw in each layer."""
  _, _, factors = _make(trained=False)
  fan_in = {"attention/q": 32, "attention/o": 32, "mlp/down": 96}
  for target, size in fan_in.items():
    part, name = target.split("/")
    layer = factors["layers"][part][name]
    a = np.asarray(layer["lora_a"])
    assert (np.abs(a) <= size**-0.5).all()
    # Of 384 numbers or more: the largest is within 2 % of the bound.
    assert np.abs(a).max() > 0.97 * size**-0.5
    assert np.abs(a[0] - a[1]).max() > 0.1 * size**-0.5
    assert not np.asarray(layer["lora_b"]).any()


def test_factors_are_made_in_their_shards():
  mesh = sharding.make_mesh(1, 4, 2)
  definition, _, _ = _make()
  shardings = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  sharded = init_params(definition, jax.random.key(1), shardings)
  attention = sharded["layers"]["attention"]
  specs = {
    f"{name}/{factor}": tuple(x.sharding.spec)
    for name in "qo"
    for factor, x in attention[name].items()
  }
  assert specs == {
    "q/lora_a": (None, "fsdp", None),
    "q/lora_b": (None, None, "tensor", None),
    "o/lora_a": (None, "tensor", None, None),
    "o/lora_b": (None, None, "fsdp"),
  }
  alone = init_params(definition, jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, sharded, alone)


def test_overlay_copies_no_array():
  _, base, factors = _make()
  both = overlay(base, factors)
  up = both["layers"]["mlp"]["up"]
  assert set(up) == {"kernel", "lora_a", "lora_b"}
  assert up["kernel"] is base["layers"]["mlp"]["up"]["kernel"]
  assert up["lora_a"] is factors["layers"]["mlp"]["up"]["lora_a"]
  assert set(base["layers"]["mlp"]["up"]) == {"kernel"}


@pytest.mark.parametrize(
  ("pattern", "found"),
  [
    (".*_proj", ALL),
    ("q_proj|v_proj", ("attention/q", "attention/v")),
    ("self_attn[.].*", ALL[:4]),
    ("mlp.down_proj", ("mlp/down",)),
    (r"model\.layers\.\d+\.mlp\.up_proj", ("mlp/up",)),
  ],
)
def test_targets_by_pattern(pattern, found):
  base = define(CONFIG, dtype="float32")
  targets = lora_targets(base, Lora(rank=1, targets=pattern))
  assert {"/".join(path[1:]) for path in targets} == set(found)


@pytest.mark.parametrize(
  ("pattern", "told"),
  [
    ("query", r"'query', which matches no layer .* These can: self_attn\.q"),
    ("proj", "matches no layer"),  # all of a name's end, not a part of it
    ("lm_head", "matches no layer"),
    ("(q_proj", "not a regular expression: missing"),
    (r"layers\.[01]\.mlp\.up_proj", "in some layers only"),
  ],
)
def test_targets_refused(pattern, told):
  with pytest.raises(UserError, match=told):
    define(CONFIG, dtype="float32", lora=Lora(rank=1, targets=pattern))


def test_dropout_is_of_the_factors_inputs_and_for_training_only():
  definition, base, factors = _make(dropout=0.5)
  both = overlay(base, factors)
  still = _forward(definition, both)
  plain, *_ = _make(dropout=0.0)
  np.testing.assert_array_equal(still, _forward(plain, both))
  one, two = (_forward(definition, both, jax.random.key(i)) for i in (1, 2))
  assert np.abs(one - still).max() > 0.1
  assert np.abs(one - two).max() > 0.1
  np.testing.assert_array_equal(
    one, _forward(definition, both, jax.random.key(1))
  )
  # Factors that are zero hide it: the model's own path drops nothing.
  _, _, new = _make(dropout=0.5, trained=False)
  both = overlay(base, new)
  np.testing.assert_array_equal(
    _forward(definition, both, jax.random.key(1)),
    _forward(definition.base, base),
  )


def test_dropout_keeps_the_mean():
  """Of one layer whose input and factors are ones: 32 inputs, half dropped."""
  definition, base, factors = _make(dropout=0.5, alpha=4.0, targets="up_proj")
  ones = jax.tree.map(jnp.ones_like, factors)
  model = bind(definition, overlay(base, ones), jax.random.key(0))
  layer = model.layers.mlp.up
  # Of a stack, the first layer.
  for name in ("kernel", "lora_a", "lora_b", "dropout_key"):
    variable = getattr(layer, name)
    setattr(layer, name, type(variable)(variable[...][0]))
  x = jnp.ones((1000, 32))
  added = np.asarray(layer(x) - x @ layer.kernel[...])[:, 0] / layer.scale / 4
  # Of each input 0 or 2, 16 of 32 on average, ± sqrt(8) · 2.
  assert set(np.round(added).astype(int) % 2) == {0}
  assert abs(added.mean() - 32) < 1.0  # one sigma: 0.18
  assert 4.5 < added.std() < 7.0
