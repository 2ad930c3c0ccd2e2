"""The shape of a model of the Llama family."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from jaxpref.config import nearest
from jaxpref.errors import UserError
from jaxpref.models.llama.families import (
  FULL,
  SLIDING,
  read_arch,
  read_hf,
  write_hf,
)
from jaxpref.models.llama.presets import PRESETS
from jaxpref.ops.rope import Rope

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
  """Names are those of Hugging Face's config.json, where it has the thing.

  Defaults are those for random weights; a folder states its own.
  """

  model_type: str = "llama"  # one of `families.FAMILIES`, which exports name
  vocab_size: int = 32000
  hidden_size: int = 512
  intermediate_size: int = 1408
  num_hidden_layers: int = 8
  num_attention_heads: int = 8
  num_key_value_heads: int = 8
  head_dim: int = 64
  hidden_act: str = "silu"
  max_position_embeddings: int = 2048  # read by the 'dynamic' RoPE
  rms_norm_eps: float = 1e-5
  norm_offset: bool = False  # norms multiply by 1 + scale, all in float32
  post_norms: bool = False  # norms of what attention and MLP add, too
  qk_norm: bool = False  # norms of each head of q and k, before RoPE
  scale_embeddings: bool = False  # by sqrt(hidden_size)
  tie_word_embeddings: bool = False
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  query_pre_attn_scalar: int = 0  # scores over its root; 0 = head_dim
  attn_logit_softcapping: float = 0.0  # 0 = off
  final_logit_softcapping: float = 0.0  # 0 = off
  layer_types: tuple[str, ...] = (FULL,)  # repeated over the layers
  sliding_window: int = 0  # tokens a sliding layer sees, itself included
  initializer_range: float = 0.02  # std of random embeddings
  rope_parameters: Rope = dataclasses.field(default_factory=Rope)
  local_rope_parameters: Rope | None = None  # of sliding layers, if they differ
  # Not read by the model: sampling stops at these, and exports carry them.
  bos_token_id: int | None = None
  eos_token_id: int | tuple[int, ...] | None = None
  pad_token_id: int | None = None

  def __post_init__(self) -> None:
    _check(self, "LlamaConfig")

  @classmethod
  def from_hf(
    cls, given: Mapping[str, Any], *, source: str = "config.json"
  ) -> "LlamaConfig":
    """Reads config.json of any transformers; see `families.read_hf`."""
    return _build(read_hf(given, source), source)

  @classmethod
  def from_arch(
    cls, arch: Mapping[str, Any], *, source: str = "config.model.arch"
  ) -> "LlamaConfig":
    """A config for random weights of what differs from the defaults.

    Keys are those of the config.json of `model_type` ('llama' if not given),
    and `preset`, the name of a published model that the other keys change.
    Key-value heads, the head's width and the feed-forward's follow the other
    sizes where not given.
    """
    if name := arch.get("preset"):
      if name not in PRESETS:
        raise UserError(
          f"{source}.preset is {name!r}. {nearest(str(name), PRESETS)}"
        )
      arch = {**PRESETS[name], **arch}
    return _build(read_arch(arch, source), source)

  def to_hf(self, *, dtype: str = "float32") -> dict[str, Any]:
    """A config.json that transformers 4 and 5 both read."""
    fields = {name: getattr(self, name) for name in _names()}
    return write_hf(fields, dtype)

  @property
  def embed_scale(self) -> float:
    """What rows of the table of embeddings are multiplied by."""
    return math.sqrt(self.hidden_size) if self.scale_embeddings else 1.0

  def eos_ids(self) -> tuple[int, ...]:
    """The ids at which sampling stops."""
    if self.eos_token_id is None:
      return ()
    if isinstance(self.eos_token_id, tuple):
      return self.eos_token_id
    return (self.eos_token_id,)

  def layers(self) -> tuple[str, ...]:
    """The type of each layer: full_attention or sliding_attention."""
    types, count = self.layer_types, self.num_hidden_layers
    return tuple(types[layer % len(types)] for layer in range(count))


def _names() -> tuple[str, ...]:
  return tuple(field.name for field in dataclasses.fields(LlamaConfig))


def _build(values: dict[str, Any], source: str) -> LlamaConfig:
  for field in dataclasses.fields(LlamaConfig):
    kind = type(field.default)
    if field.name in values and kind in (int, float, bool, str):
      value = values[field.name]
      whole = isinstance(value, int) and not isinstance(value, bool)
      if kind is float and whole:
        values[field.name] = float(value)
      elif not isinstance(value, kind) or (kind is int and not whole):
        raise UserError(
          f"{source}: {field.name} is {value!r}; it must be a {kind.__name__}."
        )
  heads = values.get("num_attention_heads", LlamaConfig.num_attention_heads)
  hidden = values.get("hidden_size", LlamaConfig.hidden_size)
  values.setdefault("num_key_value_heads", heads)
  values.setdefault("head_dim", hidden // max(1, heads))
  if isinstance(values.get("eos_token_id"), list):
    values["eos_token_id"] = tuple(values["eos_token_id"])
  _check(values, source)
  return LlamaConfig(**values)


def _check(values: Any, source: str) -> None:
  def get(name: str) -> Any:
    if isinstance(values, dict):
      return values.get(name, getattr(LlamaConfig, name))
    return getattr(values, name)

  for name in _POSITIVE:
    if get(name) < 1:
      raise UserError(f"{source}: {name} is {get(name)}; it must be positive.")
  for name in _NOT_NEGATIVE:
    if get(name) < 0:
      raise UserError(
        f"{source}: {name} is {get(name)}; it must not be negative."
      )
  heads, kv_heads = get("num_attention_heads"), get("num_key_value_heads")
  if heads % kv_heads:
    raise UserError(
      f"{source}: num_attention_heads ({heads}) is not a multiple of "
      f"num_key_value_heads ({kv_heads}); choose sizes where it is."
    )
  if get("head_dim") % 2:
    raise UserError(
      f"{source}: head_dim is {get('head_dim')}; it must be even, since RoPE "
      "turns pairs of channels."
    )
  if get("hidden_act") not in ACTIVATIONS:
    raise UserError(
      f"{source}: hidden_act is {get('hidden_act')!r}; supported are "
      f"{', '.join(ACTIVATIONS)}."
    )
  if SLIDING in get("layer_types") and not get("sliding_window"):
    raise UserError(
      f"{source}: sliding_window is 0, and layer_types names {SLIDING}. State "
      "the window, in tokens."
    )


_POSITIVE = (
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
  "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
_NOT_NEGATIVE = (
  "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
  "sliding_window",
)  # fmt: skip
