"""The decoder of the Llama family.

Logits are those of transformers' LlamaForCausalLM and of its relatives in
`families.FAMILIES`. References: Llama 2 (https://arxiv.org/abs/2307.09288), 3
(https://arxiv.org/abs/2407.21783); Mistral (https://arxiv.org/abs/2310.06825);
Qwen 2.5 (https://arxiv.org/abs/2412.15115), 3
(https://arxiv.org/abs/2505.09388); Gemma 2 (https://arxiv.org/abs/2408.00118),
3 (https://arxiv.org/abs/2503.19786).
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32, Int32

from jaxpref.models.heads import RewardHead
from jaxpref.models.layers import (
  Call,
  Dtypes,
  Embed,
  Linear,
  OffsetRMSNorm,
  RMSNorm,
  Rngs,
  scan_layers,
  stack_layers,
)
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.families import SLIDING
from jaxpref.models.prompt import SoftPrompt
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

  score: RewardHead  # there only in reward models
  prompt: SoftPrompt  # there only in prompt tuning

  def __init__(
    self,
    config: LlamaConfig,
    *,
    rngs: Rngs,
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
    self.norm = _make_norm(config, D, rngs, dtypes)
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
      position: place of each token in its sequence, from 0, for RoPE; a
        prompt's virtual tokens have the first ones.
      attend: attention, see `ops.attention.Attend`.
      per_layer: what `attend` keeps a layer, with the layer axis first.

    Returns: hidden states in the compute dtype, and per_layer anew.
    """
    calls = {
      kind: self._layer_call(kind, position, attend)
      for kind in self.config.layer_types
    }
    x, per_layer = scan_layers(
      self.layers,
      [calls[kind] for kind in self.config.layers()],
      self._embed(tokens, position),
      per_layer,
      remat=self.remat,
    )
    return self.norm(x), per_layer

  def head_kernel(self) -> Float[Array, "embed vocab"]:
    """What hidden states are multiplied with for logits, in `dtype`."""
    if self.head is None:
      return self.embed.table[...].astype(self.dtype).T
    return self.head.kernel[...].astype(self.dtype)

  def cap(
    self, logits: Float32[Array, "*tokens vocab"]
  ) -> Float32[Array, "*tokens vocab"]:
    """Logits as the model means them: c tanh(x / c), where it has a c."""
    cap = self.config.final_logit_softcapping
    return cap * jnp.tanh(logits / cap) if cap else logits

  def embed_text(
    self, tokens: Int32[Array, "rows tokens"]
  ) -> Float[Array, "rows tokens embed"]:
    """What the blocks read of tokens of the vocabulary."""
    x, scale = self.embed(tokens), self.config.embed_scale
    # Rounded: in bfloat16 the root of 3072 is 55.5.
    return x * jnp.asarray(scale, self.dtype) if scale != 1.0 else x

  def _embed(
    self,
    tokens: Int32[Array, "rows tokens"],
    position: Int32[Array, "rows tokens"],
  ) -> Float[Array, "rows tokens embed"]:
    x = self.embed_text(tokens)
    return self.prompt(x, position) if hasattr(self, "prompt") else x

  def _layer_call(
    self,
    layer_type: str,
    position: Int32[Array, "rows tokens"],
    attend: Attend,
  ) -> Call:
    """What `scan_layers` calls for layers of a type."""
    config = self.config
    local = layer_type == SLIDING
    angle = angles(
      position,
      (local and config.local_rope_parameters) or config.rope_parameters,
      head_dim=config.head_dim,
      max_position=config.max_position_embeddings,
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    kind = Kind(
      scale=(config.query_pre_attn_scalar or config.head_dim) ** -0.5,
      window=config.sliding_window if local else 0,
      softcap=config.attn_logit_softcapping,
    )
    attend = functools.partial(attend, kind=kind)
    return lambda block, x, item: block(x, cos, sin, attend, item)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  With post-norms, what is added passes a norm too.
  """

  def __init__(self, config: LlamaConfig, *, rngs: Rngs, dtypes: Dtypes):
    make = functools.partial(
      _make_norm, config, config.hidden_size, rngs, dtypes
    )
    self.attention_norm = make()
    self.attention = Attention(config, rngs=rngs, dtypes=dtypes)
    self.attention_out_norm = make() if config.post_norms else None
    self.mlp_norm = make()
    self.mlp = Mlp(config, rngs=rngs, dtypes=dtypes)
    self.mlp_out_norm = make() if config.post_norms else None

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
    x = x + _maybe(self.attention_out_norm, out)
    out = self.mlp(self.mlp_norm(x))
    return x + _maybe(self.mlp_out_norm, out), item


class Attention(nnx.Module):
  """Projections, norms of heads and RoPE around the caller's `attend`."""

  def __init__(self, config: LlamaConfig, *, rngs: Rngs, dtypes: Dtypes):
    embed = {"embed": config.hidden_size}
    head_dim = {"head_dim": config.head_dim}
    heads = {"heads": config.num_attention_heads, **head_dim}
    kv_heads = {"kv_heads": config.num_key_value_heads, **head_dim}
    make = functools.partial(Linear, rngs=rngs, dtypes=dtypes)
    self.q = make(embed, heads, use_bias=config.qkv_bias)
    self.k = make(embed, kv_heads, use_bias=config.qkv_bias)
    self.v = make(embed, kv_heads, use_bias=config.qkv_bias)
    self.o = make(heads, embed, use_bias=config.o_bias)
    make_norm = functools.partial(
      _make_norm, config, config.head_dim, rngs, dtypes
    )
    self.q_norm = make_norm() if config.qk_norm else None
    self.k_norm = make_norm() if config.qk_norm else None

  def __call__(
    self,
    x: Float[Array, "rows tokens embed"],
    cos: Float32[Array, "rows tokens half"],
    sin: Float32[Array, "rows tokens half"],
    attend: Attend,
    item: Any,
  ) -> tuple[Float[Array, "rows tokens embed"], Any]:
    q = rotate(_maybe(self.q_norm, self.q(x)), cos, sin)
    k = rotate(_maybe(self.k_norm, self.k(x)), cos, sin)
    out, item = attend(q, k, self.v(x), item)
    return self.o(out), item


class Mlp(nnx.Module):
  """down(act(gate(x)) * up(x))."""

  def __init__(self, config: LlamaConfig, *, rngs: Rngs, dtypes: Dtypes):
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


def _make_norm(
  config: LlamaConfig, size: int, rngs: Rngs, dtypes: Dtypes
) -> RMSNorm:
  kind = OffsetRMSNorm if config.norm_offset else RMSNorm
  return kind(size, eps=config.rms_norm_eps, rngs=rngs, dtypes=dtypes)


def _maybe(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
  return x if norm is None else norm(x)
