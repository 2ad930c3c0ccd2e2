"""The encoder layers that CLIP's two towers share.

Reference: Radford et al. 2021 (https://arxiv.org/abs/2103.00020); outputs are
those of transformers, and layers have its names.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Float

from jaxpref.models.layers import Dtypes, Linear, Rngs, normal, param
from jaxpref.models.sdxl.clip_config import ClipConfig
from jaxpref.models.sdxl.layers import LayerNorm
from jaxpref.sharding import constrain

INITIAL = 0.02
"""Standard deviation of random embeddings."""

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""attend(q, k, v), each [items, tokens, heads, head_dim]."""

_ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class Places(nnx.Module):
  """A vector for each place; never cut, since their number is odd."""

  def __init__(self, num: int, size: int, *, rngs: Rngs, dtypes: Dtypes):
    axes = ("window", "vocab_embed")
    init = normal(INITIAL)
    self.table = param(rngs, (num, size), axes, init, dtypes.params)


class ClipLayer(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, config: ClipConfig, *, rngs: Rngs, dtypes: Dtypes):
    size, eps = config.hidden_size, config.layer_norm_eps
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    self.layer_norm1 = LayerNorm(size, eps=eps, **rest)
    self.self_attn = ClipAttention(config, **rest)
    self.layer_norm2 = LayerNorm(size, eps=eps, **rest)
    self.mlp = ClipMlp(config, **rest)

  def __call__(
    self, x: Float[Array, "items tokens D"], attend: Attend
  ) -> Float[Array, "items tokens D"]:
    x = constrain(x, ("batch", "length", "act_embed"))
    x = x + self.self_attn(self.layer_norm1(x), attend)
    return x + self.mlp(self.layer_norm2(x))


class ClipAttention(nnx.Module):
  """Projections around the tower's `attend`."""

  def __init__(self, config: ClipConfig, *, rngs: Rngs, dtypes: Dtypes):
    heads = config.num_attention_heads
    make = functools.partial(Linear, use_bias=True, rngs=rngs, dtypes=dtypes)
    whole = {"embed": config.hidden_size}
    split = {"heads": heads, "head_dim": config.hidden_size // heads}
    self.q_proj = make(whole, split)
    self.k_proj = make(whole, split)
    self.v_proj = make(whole, split)
    self.out_proj = make(split, whole)

  def __call__(
    self, x: Float[Array, "items tokens D"], attend: Attend
  ) -> Float[Array, "items tokens D"]:
    return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class ClipMlp(nnx.Module):
  """fc2(act(fc1(x)))."""

  def __init__(self, config: ClipConfig, *, rngs: Rngs, dtypes: Dtypes):
    make = functools.partial(Linear, use_bias=True, rngs=rngs, dtypes=dtypes)
    whole, hidden = (
      {"embed": config.hidden_size},
      {"mlp": config.intermediate_size},
    )
    self.fc1, self.fc2 = make(whole, hidden), make(hidden, whole)
    self.act = config.hidden_act

  def __call__(
    self, x: Float[Array, "items tokens D"]
  ) -> Float[Array, "items tokens D"]:
    return self.fc2(_ACTIVATION[self.act](self.fc1(x)))
