"""Where each tensor of a Hugging Face Llama stands in our parameters."""

from typing import NamedTuple

import numpy as np

from jaxpref.models.llama.config import LlamaConfig


class Weight(NamedTuple):
  """One row of the table, read both ways.

  torch holds a projection as [out, in], heads flat; ours is [in, *out] or
  [*in, out], heads apart. Everything else differs in shape at most.
  """

  name: str  # in the file; {} is the number of the layer
  path: tuple[str, ...]  # in our nested dict; a stacked leaf has layers first
  shape: tuple[int, ...]  # in the file
  transposed: bool

  @property
  def stacked(self) -> bool:
    return "{}" in self.name

  def ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Of the file's tensor, one layer of our leaf, in its shape."""
    return (tensor.T if self.transposed else tensor).reshape(shape)

  def theirs(self, array: np.ndarray) -> np.ndarray:
    """Of one layer of our leaf, the file's tensor."""
    if not self.transposed:
      return np.ascontiguousarray(array.reshape(self.shape))
    return np.ascontiguousarray(array.reshape(self.shape[::-1]).T)


IGNORED = ("rotary_emb.inv_freq",)
"""Ends of names of buffers that old files hold beside the weights."""

TIED = "lm_head.weight"
"""What a tied checkpoint may hold although the embedding says it all."""


def weights(config: LlamaConfig) -> list[Weight]:
  """The table, in the order in which files are written."""
  D, V, F = config.hidden_size, config.vocab_size, config.intermediate_size
  H = config.num_attention_heads * config.head_dim
  K = config.num_key_value_heads * config.head_dim
  table = [
    Weight("model.embed_tokens.weight", ("embed", "table"), (V, D), False)
  ]

  def add(name: str, path: str, shape: tuple[int, ...], kind: str) -> None:
    where = ("layers", *path.split("/"), kind)
    table.append(
      Weight(f"model.layers.{{}}.{name}", where, shape, kind == "kernel")
    )

  add("input_layernorm.weight", "attention_norm", (D,), "scale")
  for part, size in (
    ("q", (H, D)),
    ("k", (K, D)),
    ("v", (K, D)),
    ("o", (D, H)),
  ):
    name, path = f"self_attn.{part}_proj", f"attention/{part}"
    add(f"{name}.weight", path, size, "kernel")
    if config.attention_bias:
      add(f"{name}.bias", path, size[:1], "bias")
  add("post_attention_layernorm.weight", "mlp_norm", (D,), "scale")
  for part, size in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
    name, path = f"mlp.{part}_proj", f"mlp/{part}"
    add(f"{name}.weight", path, size, "kernel")
    if config.mlp_bias:
      add(f"{name}.bias", path, size[:1], "bias")
  table.append(Weight("model.norm.weight", ("norm", "scale"), (D,), False))
  if not config.tie_word_embeddings:
    table.append(Weight(TIED, ("head", "kernel"), (V, D), True))
  return table
