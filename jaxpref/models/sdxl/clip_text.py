"""CLIP's text tower, with or without its projection."""

import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int32

from jaxpref.models.layers import Embed, Linear, Rngs, scan_layers, stack_layers
from jaxpref.models.sdxl.clip import INITIAL, ClipLayer, Places
from jaxpref.models.sdxl.clip_config import ClipTextConfig
from jaxpref.models.sdxl.layers import LayerNorm, as_dtypes
from jaxpref.ops.attention import Kind, causal_attention


class TextStates(NamedTuple):
  """What image models take of a text."""

  penultimate: Float[Array, "texts tokens D"]  # into the last layer; no norm
  pooled: Float[Array, "texts P"]  # at the end of the text; projected if it is
  last: Float[Array, "texts tokens D"]  # out of the final norm


class ClipText(nnx.Module):
  """Token ids to states; every text must hold the end-of-text token."""

  def __init__(
    self,
    config: ClipTextConfig,
    *,
    rngs: Rngs,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: str,
  ):
    dtypes = as_dtypes(dtype, param_dtype)
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    size, places = config.hidden_size, config.max_position_embeddings
    self.token_embedding = Embed(config.vocab_size, size, std=INITIAL, **rest)
    self.position_embedding = Places(places, size, **rest)
    layer = functools.partial(ClipLayer, config, dtypes=dtypes)
    self.layers = stack_layers(layer, config.num_hidden_layers, rngs)
    self.final_layer_norm = LayerNorm(size, eps=config.layer_norm_eps, **rest)
    self.text_projection = (
      Linear(
        {"embed": size},
        {"features": config.projection_dim},
        use_bias=False,
        **rest,
      )
      if config.projected
      else None
    )
    self.config = config
    self.remat = remat

  def __call__(self, ids: Int32[Array, "texts tokens"]) -> TextStates:
    x = self.token_embedding(ids)
    x = x + self.position_embedding.table[...][None, : ids.shape[1]].astype(
      x.dtype
    )

    head_dim = self.config.hidden_size // self.config.num_attention_heads
    attend = functools.partial(causal_attention, kind=Kind(head_dim**-0.5))

    def call(layer: ClipLayer, x: Any, item: None) -> tuple[Any, None]:
      now, _ = x
      return (layer(now, attend), now), item

    (x, before), _ = scan_layers(self.layers, call, (x, x), remat=self.remat)
    x = self.final_layer_norm(x)
    pooled = jax.vmap(lambda states, end: states[end])(x, self._end(ids))
    if self.text_projection is not None:
      pooled = self.text_projection(pooled)
    return TextStates(before, pooled, x)

  def _end(self, ids: Int32[Array, "texts tokens"]) -> Int32[Array, "texts"]:
    # Configs from before transformers 4.31, as SDXL's, have a wrong id, 2; the
    # end is then the largest id, as OpenAI has it.
    eos = self.config.eos_token_id
    ends = ids if eos == 2 else (ids == eos)
    return jnp.argmax(ends, axis=1).astype(jnp.int32)
