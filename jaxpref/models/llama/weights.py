"""Where each tensor of a Hugging Face folder stands in our parameters."""

import re

from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.weights import Weight

IGNORED = ("rotary_emb.inv_freq",)
"""Ends of names of buffers that old files hold beside the weights."""

TIED = "lm_head.weight"
"""What a tied checkpoint may hold although the embedding says it all."""

_PREFIXES = {  # of transformers 4 and 5, in models that read images too
  "language_model.model.": "model.",
  "language_model.lm_head.": "lm_head.",
  "model.language_model.": "model.",
}
_IMAGES = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")


def text_name(name: str) -> str | None:
  """A tensor's name without that of the part that reads text.

  None for those of the parts that read images.
  """
  if _IMAGES.match(name):
    return None
  prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
  return _PREFIXES.get(prefix, "") + name.removeprefix(prefix)


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
    if config.o_bias if part == "o" else config.qkv_bias:
      add(f"{name}.bias", path, size[:1], "bias")
  if config.qk_norm:
    for part in ("q_norm", "k_norm"):
      shape = (config.head_dim,)
      add(f"self_attn.{part}.weight", f"attention/{part}", shape, "scale")
  norms = {"post_attention_layernorm": "mlp_norm"}
  if config.post_norms:  # Gemma has that name for a norm at another place
    norms = {
      "post_attention_layernorm": "attention_out_norm",
      "pre_feedforward_layernorm": "mlp_norm",
      "post_feedforward_layernorm": "mlp_out_norm",
    }
  for name, path in norms.items():
    add(f"{name}.weight", path, (D,), "scale")
  for part, size in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
    name, path = f"mlp.{part}_proj", f"mlp/{part}"
    add(f"{name}.weight", path, size, "kernel")
    if config.mlp_bias:
      add(f"{name}.bias", path, size[:1], "bias")
  table.append(Weight("model.norm.weight", ("norm", "scale"), (D,), False))
  if not config.tie_word_embeddings:
    table.append(Weight(TIED, ("head", "kernel"), (V, D), True))
  return table
