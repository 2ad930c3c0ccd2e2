"""The families by their `model_type`, and their config.json, both ways."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxpref.config import nearest
from jaxpref.errors import UserError
from jaxpref.models.llama.rope import read_rope, write_rope
from jaxpref.ops.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"


class Family(NamedTuple):
  """What a model_type means."""

  architecture: str
  keys: tuple[str, ...]  # read from its config.json, beside those of all
  implied: dict[str, Any]  # fields of ours that its config.json cannot state
  marks: dict[str, Any]  # keys that random weights of this family have too
  defaults: dict[str, Any]  # transformers', of keys that a file leaves out


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys of all families that are fields of ours by the same name.
_SAME = (
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
  "num_attention_heads", "num_key_value_heads", "head_dim",
  "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
  "initializer_range", *_IDS,
)  # fmt: skip
_ROPE = ("rope_parameters", "rope_theta", "rope_scaling")
_WINDOWS = ("use_sliding_window", "max_window_layers", "sliding_window")
_GEMMA = (
  "hidden_activation", "attention_bias", "query_pre_attn_scalar",
  "sliding_window", "layer_types", "final_logit_softcapping",
)  # fmt: skip
_GEMMA_MARKS = {
  "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": True,
  "sliding_window": 4096,
}
_GEMMA_IMPLIED = {
  "norm_offset": True,
  "post_norms": True,
  "scale_embeddings": True,
}
_GEMMA_DEFAULTS = {
  "num_key_value_heads": 4,
  "head_dim": 256,
  "query_pre_attn_scalar": 256,
  "bos_token_id": 2,
  "eos_token_id": 1,
  "pad_token_id": 0,
}
_QWEN_MARKS = {
  "use_sliding_window": False,
  "sliding_window": 4096,
  "max_window_layers": 28,
}
_QWEN_DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32768}
_LLAMA_IDS = {"bos_token_id": 1, "eos_token_id": 2}

FAMILIES = {
  "llama": Family(
    "LlamaForCausalLM",
    keys=("hidden_act", "attention_bias", "mlp_bias"),
    implied={},
    marks={},
    defaults=_LLAMA_IDS,
  ),
  "mistral": Family(
    "MistralForCausalLM",
    keys=("hidden_act", "sliding_window"),
    implied={},
    marks={"sliding_window": 4096},
    defaults={
      "num_key_value_heads": 8,
      "max_position_embeddings": 131072,
      **_LLAMA_IDS,
    },
  ),
  "qwen2": Family(
    "Qwen2ForCausalLM",
    keys=("hidden_act", *_WINDOWS, "layer_types"),
    implied={"qkv_bias": True},
    marks=_QWEN_MARKS,
    defaults=_QWEN_DEFAULTS,
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    keys=("hidden_act", "attention_bias", *_WINDOWS, "layer_types"),
    implied={"qk_norm": True},
    marks=_QWEN_MARKS,
    defaults={"head_dim": 128, **_QWEN_DEFAULTS},
  ),
  "gemma2": Family(
    "Gemma2ForCausalLM",
    keys=(*_GEMMA, "attn_logit_softcapping"),
    implied=_GEMMA_IMPLIED,
    marks={
      "attn_logit_softcapping": 50.0,
      "final_logit_softcapping": 30.0,
      **_GEMMA_MARKS,
    },
    defaults={"max_position_embeddings": 8192, **_GEMMA_DEFAULTS},
  ),
  "gemma3_text": Family(
    "Gemma3ForCausalLM",
    # Its attn_logit_softcapping is not among them: transformers ignores it.
    keys=(*_GEMMA, "rope_local_base_freq", "sliding_window_pattern"),
    implied={"qk_norm": True, **_GEMMA_IMPLIED},
    marks={
      "rope_theta": 1000000.0,
      "rope_local_base_freq": 10000.0,
      "sliding_window_pattern": 6,
      **_GEMMA_MARKS,
    },
    defaults={
      # Its files with images state only what differs from these.
      "vocab_size": 262208,
      "hidden_size": 2304,
      "intermediate_size": 9216,
      "num_hidden_layers": 26,
      "num_attention_heads": 8,
      "max_position_embeddings": 131072,
      **_GEMMA_DEFAULTS,
    },
  ),
}
_REQUIRED = (
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
  "num_attention_heads",
)  # fmt: skip
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
# What would change the model's output, and the values that do not.
_REFUSED: dict[str, tuple[Any, ...]] = {
  "sliding_window": (None,),
  "use_sliding_window": (None, False),
  "attn_logit_softcapping": (None,),
  "final_logit_softcapping": (None,),
  "attention_dropout": (None, 0.0),
  "quantization_config": (None,),
  "partial_rotary_factor": (None, 1.0),
  "is_encoder_decoder": (None, False),
  "use_bidirectional_attention": (None, False),
  "dual_chunk_attention_config": (None,),
}
# Keys whose null says something, and is not as if they were left out.
_NULLABLE = {
  "sliding_window", "attn_logit_softcapping", "final_logit_softcapping", *_IDS,
}  # fmt: skip


def read_hf(given: Mapping[str, Any], source: str) -> dict[str, Any]:
  """Fields of a LlamaConfig, of a config.json of any transformers.

  What is left out has transformers' defaults. Of a model that reads images,
  the part that reads text.

  Raises UserError, naming `source` and the key, for what is no such model or
  cannot be honoured.
  """
  given = _text_part(given)
  family = FAMILIES.get(str(given.get("model_type")))
  if family is None:
    raise UserError(
      f"{source}: model_type is {given.get('model_type')!r}; supported are "
      f"{', '.join(FAMILIES)}. Choose such a model."
    )
  for key, allowed in _REFUSED.items():
    if key not in family.keys and given.get(key) not in allowed:
      raise UserError(
        f"{source}: {key} is {given[key]!r}, which is not supported; it must "
        f"be {' or '.join(repr(value) for value in allowed)}. Choose a model "
        "without it."
      )
  values = {**_DEFAULTS, **family.defaults, **family.marks, **_stated(given)}
  missing = [key for key in _REQUIRED if key not in values]
  if missing:
    raise UserError(
      f"{source}: {', '.join(missing)} missing; a model's config.json states "
      "them. Take the file of the original model."
    )
  return _fields(values, family, source)


def read_arch(arch: Mapping[str, Any], source: str) -> dict[str, Any]:
  """Fields of a LlamaConfig, of the keys of a config.json that were chosen.

  Raises UserError for a key that the family does not have.
  """
  name = arch.get("model_type", "llama")
  if name not in FAMILIES:
    raise UserError(
      f"{source}.model_type is {name!r}. {nearest(str(name), FAMILIES)}"
    )
  family = FAMILIES[name]
  known = {"model_type", "preset", *_SAME, *_ROPE, *family.keys}
  for key in arch:
    if key not in known:
      raise UserError(
        f"{source}: unknown key {key} of a {name}. {nearest(key, known)}"
      )
  values = {"model_type": name, **family.marks, **_stated(arch)}
  if "hidden_size" in values and "intermediate_size" not in values:
    # 8/3 of the width, as Llama 2 has, in multiples of 32.
    values["intermediate_size"] = -(-8 * int(values["hidden_size"]) // 96) * 32
  return _fields(values, family, source)


def write_hf(fields: Mapping[str, Any], dtype: str) -> dict[str, Any]:
  """A config.json that transformers 4 and 5 both read.

  Version 4 takes rope_theta, rope_scaling and torch_dtype; 5 takes
  rope_parameters and dtype.
  """
  family = FAMILIES[fields["model_type"]]
  types, window = fields["layer_types"], fields["sliding_window"]
  layers = fields["num_hidden_layers"]
  every = [types[i % len(types)] for i in range(layers)]
  eos = fields["eos_token_id"]
  head_dim = fields["head_dim"]
  others = {
    "hidden_act": fields["hidden_act"],
    "hidden_activation": fields["hidden_act"],
    "attention_bias": fields["qkv_bias"],
    "mlp_bias": fields["mlp_bias"],
    "query_pre_attn_scalar": fields["query_pre_attn_scalar"] or head_dim,
    "attn_logit_softcapping": fields["attn_logit_softcapping"] or None,
    "final_logit_softcapping": fields["final_logit_softcapping"] or None,
    "sliding_window": window or None,
    "use_sliding_window": bool(window),
    "max_window_layers": every.index(SLIDING) if window else layers,
    "layer_types": every,
    "sliding_window_pattern": len(types) if types[-1] == FULL else layers + 1,
  }
  rope, local = fields["rope_parameters"], fields["local_rope_parameters"]
  return {
    "architectures": [family.architecture],
    "model_type": fields["model_type"],
    **{key: fields[key] for key in _SAME},
    "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
    **{key: others[key] for key in family.keys if key in others},
    "attention_dropout": 0.0,
    **write_rope(rope, local),
    "torch_dtype": dtype,
    "dtype": dtype,
  }


def _text_part(given: Mapping[str, Any]) -> Mapping[str, Any]:
  text = given.get("text_config")
  if given.get("model_type") != "gemma3" or not isinstance(text, Mapping):
    return given
  # The ids are those of the whole, which a chat model's generation stops at.
  ids = {key: given[key] for key in _IDS if given.get(key) is not None}
  return {**given, **text, **ids, "model_type": "gemma3_text"}


def _stated(given: Mapping[str, Any]) -> dict[str, Any]:
  return {
    key: value
    for key, value in given.items()
    if value is not None or key in _NULLABLE
  }


def _fields(
  values: dict[str, Any], family: Family, source: str
) -> dict[str, Any]:
  """Keys of config.json to fields of ours; where absent, ours have defaults."""
  fields = {key: values[key] for key in _SAME if key in values}
  fields["model_type"] = values["model_type"]
  fields |= family.implied
  read = {key: values[key] for key in family.keys if key in values}
  if not read.get("use_sliding_window", True):
    read["sliding_window"] = None
  if "attention_bias" in read:
    fields["qkv_bias"] = fields["o_bias"] = read["attention_bias"]
  if act := read.get("hidden_act") or read.get("hidden_activation"):
    fields["hidden_act"] = act
  for key in ("mlp_bias", "query_pre_attn_scalar"):
    if key in read:
      fields[key] = read[key]
  for key in ("attn_logit_softcapping", "final_logit_softcapping"):
    fields[key] = read.get(key) or 0.0
  types = _layer_types(values, read, source)
  fields["layer_types"] = types
  # Of a model that has no sliding layers the window says nothing.
  window = (read.get("sliding_window") or 0) if SLIDING in types else 0
  fields["sliding_window"] = window
  limit = values.get("max_position_embeddings", 2048)
  if "rope_local_base_freq" not in family.keys:
    fields["rope_parameters"] = read_rope(values, limit, source)
    return fields
  rope, local = _two_ropes(values, limit, source)
  fields["rope_parameters"], fields["local_rope_parameters"] = rope, local
  return fields


def _layer_types(
  values: Mapping[str, Any], read: Mapping[str, Any], source: str
) -> tuple[str, ...]:
  """The shortest row of types that, repeated, gives those of all layers."""
  layers = values.get("num_hidden_layers", 1)
  if not isinstance(layers, int) or layers < 1:
    return (FULL,)  # refused later, with all sizes
  usual = _usual_types(values, read, layers)
  given = values.get("layer_types") or usual
  if "layer_types" not in read and list(given) != usual:
    raise UserError(
      f"{source}: layer_types is {given}, and a {values['model_type']} has "
      f"{usual[0]} alone. Choose a model of that kind."
    )
  unknown = set(given) - {FULL, SLIDING}
  if unknown or len(given) != layers:
    raise UserError(
      f"{source}: layer_types has {len(given)} entries, of "
      f"{', '.join(sorted(set(given)))}; it must name {FULL} or {SLIDING} for "
      f"each of {layers} layers. Correct it, or choose another model."
    )
  return shortest_period(tuple(given))


def _usual_types(
  values: Mapping[str, Any], read: Mapping[str, Any], layers: int
) -> list[str]:
  """Those of a family where a file names none."""
  if values["model_type"] == "gemma2":
    return [FULL if i % 2 else SLIDING for i in range(layers)]
  if pattern := read.get("sliding_window_pattern"):
    return [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
  if not read.get("sliding_window"):
    return [FULL] * layers
  first = read.get("max_window_layers", 0)
  return [SLIDING if i >= first else FULL for i in range(layers)]


def shortest_period(row: tuple[Any, ...]) -> tuple[Any, ...]:
  """The shortest beginning that, repeated and cut, gives the row."""
  for size in range(1, len(row)):
    if all(row[i] == row[i - size] for i in range(size, len(row))):
      return row[:size]
  return row


def _two_ropes(
  values: Mapping[str, Any], limit: int, source: str
) -> tuple[Rope, Rope]:
  """Those of full and of sliding layers."""
  base = values["rope_local_base_freq"]
  given = values.get("rope_parameters")
  if not isinstance(given, Mapping) or {FULL, SLIDING}.isdisjoint(given):
    local = read_rope({"rope_theta": base}, limit, source)
    return read_rope(values, limit, source), local
  full, sliding = (
    {"rope_theta": theta, "rope_parameters": given.get(key) or {}}
    for key, theta in ((FULL, values["rope_theta"]), (SLIDING, base))
  )
  return read_rope(full, limit, source), read_rope(sliding, limit, source)
