"""The shape of a Llama, by the names of Hugging Face's config.json."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxpref.config import nearest
from jaxpref.errors import UserError
from jaxpref.models.llama.presets import PRESETS
from jaxpref.ops.rope import ROPE_FIELDS, Rope

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
  """Defaults are those for random weights; a folder states its own."""

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
  tie_word_embeddings: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  initializer_range: float = 0.02  # std of random embeddings
  rope_parameters: Rope = dataclasses.field(default_factory=Rope)
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
    """Reads config.json of any transformers; defaults are transformers'.

    Raises UserError, naming `source` and the key, for what is not a Llama 2
    or 3.x or cannot be honoured.
    """
    _refuse(given, source)
    missing = [key for key in _REQUIRED if key not in given]
    if missing:
      raise UserError(
        f"{source}: {', '.join(missing)} missing; a Llama's config.json states "
        "them. Take the file of the original model."
      )
    values = {key: given[key] for key in _names() if given.get(key) is not None}
    values = {**_TRANSFORMERS_DEFAULTS, **values}
    values["rope_parameters"] = _rope(given, values, source)
    return _build(values, source)

  @classmethod
  def from_arch(
    cls, arch: Mapping[str, Any], *, source: str = "config.model.arch"
  ) -> "LlamaConfig":
    """A config for random weights of what differs from the defaults.

    Keys are the fields, `rope_theta`, `rope_scaling` and `preset`, the name of
    a published model that the other keys change. Key-value heads, the head's
    width and the feed-forward's follow the other sizes where not given.
    """
    known = {*_names(), "rope_theta", "rope_scaling", "preset"}
    for key in arch:
      if key not in known:
        raise UserError(f"{source}: unknown key {key}. {nearest(key, known)}")
    if name := arch.get("preset"):
      if name not in PRESETS:
        raise UserError(
          f"{source}.preset is {name!r}. {nearest(str(name), PRESETS)}"
        )
      arch = {**PRESETS[name], **arch}
    values = {key: value for key, value in arch.items() if key in _names()}
    if "hidden_size" in values and "intermediate_size" not in values:
      # 8/3 of the width, as Llama 2 has, in multiples of 32.
      values["intermediate_size"] = (
        -(-8 * int(values["hidden_size"]) // 96) * 32
      )
    values["rope_parameters"] = _rope(arch, values, source)
    return _build(values, source)

  def to_hf(self, *, dtype: str = "float32") -> dict[str, Any]:
    """A config.json that transformers 4 and 5 both read.

    Version 4 takes rope_theta, rope_scaling and torch_dtype; 5 takes
    rope_parameters and dtype. `type` is the older name of `rope_type`, and
    the only one that all of version 4 knows for linear and dynamic.
    """
    rope = self.rope_parameters
    extra = {key: getattr(rope, key) for key in ROPE_FIELDS[rope.rope_type]}
    name = "rope_type" if rope.rope_type == "llama3" else "type"
    values = {key: getattr(self, key) for key in _names()}
    if isinstance(self.eos_token_id, tuple):
      values["eos_token_id"] = list(self.eos_token_id)
    return {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      **values,
      "attention_dropout": 0.0,
      "rope_theta": rope.rope_theta,
      "rope_scaling": {name: rope.rope_type, **extra} if extra else None,
      "rope_parameters": {
        "rope_type": rope.rope_type,
        "rope_theta": rope.rope_theta,
        **extra,
      },
      "torch_dtype": dtype,
      "dtype": dtype,
    }

  def eos_ids(self) -> tuple[int, ...]:
    """The ids at which sampling stops."""
    if self.eos_token_id is None:
      return ()
    if isinstance(self.eos_token_id, tuple):
      return self.eos_token_id
    return (self.eos_token_id,)


_REQUIRED = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
)
_TRANSFORMERS_DEFAULTS = {
  "rms_norm_eps": 1e-6,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
# What would change the model's output, and the values that do not.
_REFUSED: dict[str, tuple[Any, ...]] = {
  "sliding_window": (None,),
  "attention_dropout": (None, 0.0),
  "quantization_config": (None,),
  "partial_rotary_factor": (None, 1.0),
  "final_logit_softcapping": (None,),
  "attn_logit_softcapping": (None,),
  "is_encoder_decoder": (None, False),
}


def _names() -> tuple[str, ...]:
  return tuple(field.name for field in dataclasses.fields(LlamaConfig))


def _refuse(given: Mapping[str, Any], source: str) -> None:
  if given.get("model_type") != "llama":
    raise UserError(
      f"{source}: model_type is {given.get('model_type')!r}; only 'llama' "
      "(Llama 2 and 3.x) is supported. Choose such a model."
    )
  for key, allowed in _REFUSED.items():
    if given.get(key) not in allowed:
      raise UserError(
        f"{source}: {key} is {given[key]!r}, which is not supported; it must "
        f"be {' or '.join(repr(value) for value in allowed)}. Choose a model "
        "without it."
      )
  layers = set(given.get("layer_types") or ()) - {"full_attention"}
  if layers:
    raise UserError(
      f"{source}: layer_types names {', '.join(sorted(layers))}; only "
      "'full_attention' is supported. Choose a model of that kind."
    )


def _rope(
  given: Mapping[str, Any], values: Mapping[str, Any], source: str
) -> Rope:
  """Of `rope_parameters` (new) or `rope_theta` and `rope_scaling` (old)."""
  key = "rope_parameters" if given.get("rope_parameters") else "rope_scaling"
  rope = given.get(key) or {}
  if isinstance(rope, Rope):
    return rope
  rope = dict(rope)
  old = rope.pop("type", "default")
  kind = rope.pop("rope_type", old)
  theta = rope.pop("rope_theta", None) or given.get("rope_theta") or 10000.0
  if kind not in ROPE_FIELDS:
    raise UserError(
      f"{source}: {key}.rope_type is {kind!r}; supported are "
      f"{', '.join(ROPE_FIELDS)}. Choose a model with one of them."
    )
  if kind == "llama3":
    default = values.get("max_position_embeddings", 2048)
    rope.setdefault("original_max_position_embeddings", default)
  missing = [name for name in ROPE_FIELDS[kind] if rope.get(name) is None]
  # `finetuned` is a remark of some Llama 2 folders.
  unknown = set(rope) - set(ROPE_FIELDS[kind]) - {"finetuned"}
  if rope.get("partial_rotary_factor") == 1.0:
    unknown.discard("partial_rotary_factor")
  if missing or unknown:
    names = ", ".join(("rope_type", "rope_theta", *ROPE_FIELDS[kind]))
    raise UserError(
      f"{source}: {key} is {dict(given[key])}; the type {kind!r} has exactly "
      f"{names}. Correct the keys."
    )
  try:
    fields: dict[str, Any] = {
      name: float(rope[name]) for name in ROPE_FIELDS[kind]
    }
    theta = float(theta)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{source}: {key} is {dict(given.get(key) or {})} with rope_theta "
      f"{theta!r}; all but the type must be numbers."
    ) from error
  integers = {"original_max_position_embeddings"} & set(fields)
  counts = {name: int(fields.pop(name)) for name in integers}
  return Rope(kind, theta, **fields, **counts)


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

  for name in (*_REQUIRED, "num_key_value_heads", "head_dim"):
    if get(name) < 1:
      raise UserError(f"{source}: {name} is {get(name)}; it must be positive.")
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
