"""The Llama decoder.

Reference: Touvron et al. 2023 (https://arxiv.org/abs/2307.09288); logits are
those of transformers' LlamaForCausalLM.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32, Int32

from jaxpref.models.layers import (
  Dtypes,
  Embed,
  Linear,
  RMSNorm,
  scan_layers,
  stack_layers,
)
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.ops.attention import Attend, Kind
from jaxpref.ops.rope import angles, rotate
from jaxpref.sharding import constrain

_gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)
_ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": _gelu_tanh,
  "gelu_pytorch_tanh": _gelu_tanh,
  "relu": jax.nn.relu,
}


class Llama(nnx.Module):
  """Tokens to hidden states; the head is left to the caller.

  The caller's `attend` decides what a token sees (packed rows, padding, a
  cache), so the model knows neither masks nor sequences.
  """

  def __init__(
    self,
    config: LlamaConfig,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: str,
  ):
    dtypes = Dtypes(jnp.dtype(dtype), jnp.dtype(param_dtype))
    D, V = config.hidden_size, config.vocab_size
    std = config.initializer_range
    self.embed = Embed(V, D, std=std, rngs=rngs, dtypes=dtypes)
    block = functools.partial(Block, config, dtypes=dtypes)
    self.layers = stack_layers(block, config.num_hidden_layers, rngs)
    self.norm = RMSNorm(D, eps=config.rms_norm_eps, rngs=rngs, dtypes=dtypes)
    make = functools.partial(Linear, use_bias=False, rngs=rngs, dtypes=dtypes)
    tied = config.tie_word_embeddings
    self.head = None if tied else make({"embed": D}, {"vocab": V})
    self.config = config
    self.dtype = dtypes.compute
    self.remat = remat

  def __call__(
    self,
    tokens: Int32[Array, "rows tokens"],
    position: Int32[Array, "rows tokens"],
    attend: Attend,
    per_layer: Any = None,
  ) -> tuple[Float[Array, "rows tokens embed"], Any]:
    """Hidden states after the final norm.

    Args:
      tokens: ids below vocab_size.
      position: place of each token in its sequence, from 0, for RoPE.
      attend: attention, see `ops.attention.Attend`.
      per_layer: what `attend` keeps a layer, with the layer axis first.

    Returns: hidden states in the compute dtype, and per_layer anew.
    """
    config = self.config
    angle = angles(
      position,
      config.rope_parameters,
      head_dim=config.head_dim,
      max_position=config.max_position_embeddings,
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def call(block: Block, x: jax.Array, item: Any) -> tuple[jax.Array, Any]:
      return block(x, cos, sin, attend, item)

    x, per_layer = scan_layers(
      self.layers, call, self.embed(tokens), per_layer, remat=self.remat
    )
    return self.norm(x), per_layer

  def head_kernel(self) -> Float[Array, "embed vocab"]:
    """What hidden states are multiplied with for logits, in `dtype`."""
    if self.head is None:
      return self.embed.table[...].astype(self.dtype).T
    return self.head.kernel[...].astype(self.dtype)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtypes: Dtypes):
    D, eps = config.hidden_size, config.rms_norm_eps
    self.attention_norm = RMSNorm(D, eps=eps, rngs=rngs, dtypes=dtypes)
    self.attention = Attention(config, rngs=rngs, dtypes=dtypes)
    self.mlp_norm = RMSNorm(D, eps=eps, rngs=rngs, dtypes=dtypes)
    self.mlp = Mlp(config, rngs=rngs, dtypes=dtypes)

  def __call__(
    self,
    x: Float[Array, "rows tokens embed"],
    cos: Float32[Array, "rows tokens half"],
    sin: Float32[Array, "rows tokens half"],
    attend: Attend,
    item: Any,
  ) -> tuple[Float[Array, "rows tokens embed"], Any]:
    x = constrain(x, ("batch", "length", "act_embed"))
    out, item = self.attention(self.attention_norm(x), cos, sin, attend, item)
    x = x + out
    return x + self.mlp(self.mlp_norm(x)), item


class Attention(nnx.Module):
  """Projections and RoPE around the caller's `attend`."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtypes: Dtypes):
    embed = {"embed": config.hidden_size}
    head_dim = {"head_dim": config.head_dim}
    heads = {"heads": config.num_attention_heads, **head_dim}
    kv_heads = {"kv_heads": config.num_key_value_heads, **head_dim}
    make = functools.partial(
      Linear, use_bias=config.attention_bias, rngs=rngs, dtypes=dtypes
    )
    self.q = make(embed, heads)
    self.k = make(embed, kv_heads)
    self.v = make(embed, kv_heads)
    self.o = make(heads, embed)
    self.scale = config.head_dim**-0.5

  def __call__(
    self,
    x: Float[Array, "rows tokens embed"],
    cos: Float32[Array, "rows tokens half"],
    sin: Float32[Array, "rows tokens half"],
    attend: Attend,
    item: Any,
  ) -> tuple[Float[Array, "rows tokens embed"], Any]:
    q, k = rotate(self.q(x), cos, sin), rotate(self.k(x), cos, sin)
    out, item = attend(q, k, self.v(x), item, Kind(self.scale))
    return self.o(out), item


class Mlp(nnx.Module):
  """down(act(gate(x)) * up(x))."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtypes: Dtypes):
    embed, mlp = (
      {"embed": config.hidden_size},
      {"mlp": config.intermediate_size},
    )
    make = functools.partial(
      Linear, use_bias=config.mlp_bias, rngs=rngs, dtypes=dtypes
    )
    self.gate = make(embed, mlp)
    self.up = make(embed, mlp)
    self.down = make(mlp, embed)
    self.act = config.hidden_act

  def __call__(
    self, x: Float[Array, "rows tokens embed"]
  ) -> Float[Array, "rows tokens embed"]:
    return self.down(_ACTIVATION[self.act](self.gate(x)) * self.up(x))
