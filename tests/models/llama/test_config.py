"""config.json of several generations, and the random architectures."""

import pytest
import transformers

from jaxpref.errors import UserError
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.families import (
  _SAME,
  FAMILIES,
  FULL,
  SLIDING,
  shortest_period,
)
from jaxpref.ops.rope import Rope

OLD = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 128,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "rope_theta": 500000.0,
  "rope_scaling": None,
  "pretraining_tp": 1,
  "eos_token_id": [2, 3],
}
LLAMA3 = {
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 128,
}


def test_old_and_new_keys_are_the_same_model():
  new = {k: v for k, v in OLD.items() if not k.startswith(("rope", "torch"))}
  scaling = {"rope_type": "llama3", **LLAMA3}
  new["dtype"] = "bfloat16"
  new["rope_parameters"] = {"rope_theta": 500000.0, **scaling}
  config = LlamaConfig.from_hf({**OLD, "rope_scaling": scaling})
  assert config == LlamaConfig.from_hf(new)
  assert config.rope_parameters == Rope("llama3", 500000.0, **LLAMA3)
  assert config.head_dim == 8
  assert config.eos_ids() == (2, 3)


@pytest.mark.parametrize(
  "scaling",
  [
    None,
    {"type": "linear", "factor": 2},
    {"type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", **LLAMA3},
  ],
)
def test_written_config_is_read_again(scaling, tmp_path):
  config = LlamaConfig.from_hf({**OLD, "rope_scaling": scaling})
  written = config.to_hf(dtype="bfloat16")
  assert LlamaConfig.from_hf(written) == config
  # The old keys alone, and the new ones alone, say the same.
  old = {k: v for k, v in written.items() if k != "rope_parameters"}
  new = {k: v for k, v in written.items() if k[:6] not in ("rope_t", "rope_s")}
  assert LlamaConfig.from_hf(old) == config == LlamaConfig.from_hf(new)
  for keys in (written, old, new):
    theirs = transformers.LlamaConfig.from_dict(dict(keys))
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == 500000.0
    assert rope["rope_type"] == config.rope_parameters.rope_type
    if scaling:
      assert rope["factor"] == config.rope_parameters.factor
    assert str(theirs.dtype) in ("torch.bfloat16", "bfloat16")
    assert theirs.num_key_value_heads == 2
    assert theirs.eos_token_id == [2, 3]


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_transformers(name):
  needed = {key: OLD[key] for key in list(OLD)[2:7]}
  needed |= {"hidden_size": 64, "num_attention_heads": 32}
  theirs = transformers.AutoConfig.for_model(name, **needed).to_dict()
  read = LlamaConfig.from_hf({**needed, "model_type": name})
  ours = read.to_hf()
  for key in (*_SAME, *FAMILIES[name].keys, "rope_parameters"):
    # Where no layer slides, the first that does says nothing.
    if key in theirs and key != "max_window_layers":
      assert ours[key] == theirs[key], key
  # And it is read again as it was written.
  assert LlamaConfig.from_hf(ours) == read


# Another value for each key of any family.
OTHER_KEYS = {
  "vocab_size": 65,
  "hidden_size": 48,
  "intermediate_size": 40,
  "num_hidden_layers": 9,
  "num_attention_heads": 4,
  "num_key_value_heads": 1,
  "head_dim": 12,
  "hidden_act": "relu",
  "hidden_activation": "relu",
  "max_position_embeddings": 9,
  "rms_norm_eps": 1e-3,
  "initializer_range": 0.5,
  "bos_token_id": 5,
  "eos_token_id": [6, 7],
  "pad_token_id": 8,
  "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
  "rope_theta": 5.0,
  "rope_scaling": {"rope_type": "linear", "factor": 2.0},
  "rope_local_base_freq": 5.0,
  "attention_bias": True,
  "mlp_bias": True,
  "query_pre_attn_scalar": 9,
  "attn_logit_softcapping": 9.0,
  "final_logit_softcapping": 9.0,
  "sliding_window": 9,
  "max_window_layers": 2,
  "layer_types": [FULL, FULL, SLIDING, SLIDING],
  "sliding_window_pattern": 2,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_every_family_is_read(name):
  """And nothing else is known to a random architecture."""
  base = {"model_type": name, "num_hidden_layers": 4}
  if "use_sliding_window" in FAMILIES[name].keys:
    plain = LlamaConfig.from_arch(base)
    assert SLIDING not in plain.layers()
    base |= {"use_sliding_window": True, "max_window_layers": 1}
    assert LlamaConfig.from_arch(base).layers() == (FULL, *[SLIDING] * 3)
  config = LlamaConfig.from_arch(base)
  ropes = ("rope_parameters", "rope_theta", "rope_scaling")
  for key in (*_SAME, *FAMILIES[name].keys, *ropes):
    if key == "use_sliding_window":
      continue
    value = OTHER_KEYS.get(key, not config.tie_word_embeddings)
    assert LlamaConfig.from_arch({**base, key: value}) != config, key
  for key in set(OTHER_KEYS) - {*_SAME, *FAMILIES[name].keys, *ropes}:
    with pytest.raises(UserError, match=f"unknown key {key} of a {name}"):
      LlamaConfig.from_arch({**base, key: OTHER_KEYS[key]})


def test_periods_of_layers():
  gemma = LlamaConfig.from_arch(
    {"model_type": "gemma3_text", "num_hidden_layers": 26}
  )
  assert gemma.layer_types == (SLIDING,) * 5 + (FULL,)
  assert gemma.layers()[-3:] == (FULL, SLIDING, SLIDING)
  types = gemma.to_hf()["layer_types"]
  assert types == transformers.Gemma3TextConfig().layer_types
  assert shortest_period((1, 2, 3)) == (1, 2, 3)
  assert shortest_period((1, 1, 1)) == (1,)


def test_a_model_of_images_gives_its_text_part():
  """As the files of Gemma 3 4B: what they leave out is transformers'."""
  given = {
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "vision_config": {"hidden_size": 1152},
    "text_config": {
      "hidden_size": 2560,
      "intermediate_size": 10240,
      "model_type": "gemma3_text",
      "num_hidden_layers": 34,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 1024,
    },
  }
  config = LlamaConfig.from_hf(given)
  assert config.model_type == "gemma3_text"
  assert (config.hidden_size, config.vocab_size) == (2560, 262208)
  assert (config.num_attention_heads, config.head_dim) == (8, 256)
  assert config.rope_parameters == Rope("linear", 1000000.0, factor=8.0)
  assert config.local_rope_parameters == Rope(rope_theta=10000.0)
  assert config.eos_ids() == (1, 106)
  assert config.sliding_window == 1024
  assert LlamaConfig.from_hf(config.to_hf()) == config


def test_null_is_not_as_if_left_out():
  gemma = {**OLD, "model_type": "gemma2", "hidden_size": 256}
  assert LlamaConfig.from_hf(gemma).attn_logit_softcapping == 50.0
  gemma |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}
  config = LlamaConfig.from_hf(gemma)
  assert config.attn_logit_softcapping == config.final_logit_softcapping == 0
  mistral = {**OLD, "model_type": "mistral"}
  assert LlamaConfig.from_hf(mistral).sliding_window == 4096
  config = LlamaConfig.from_hf({**mistral, "sliding_window": None})
  assert config.sliding_window == 0
  assert config.layer_types == (FULL,)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"model_type": "mistral", "layer_types": [FULL, SLIDING]}, "alone"),
    ({"model_type": "qwen2", "layer_types": [SLIDING] * 2}, "sliding_window"),
    ({"model_type": "qwen3", "layer_types": ["chunked"] * 2}, "chunked"),
    ({"model_type": "qwen3", "layer_types": [FULL]}, "1 entries"),
    ({"model_type": "gemma2", "sliding_window": None}, "sliding_window is 0"),
    (
      {"model_type": "gemma2", "use_bidirectional_attention": True},
      "use_bidirectional_attention",
    ),
    (
      {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
      "attn_logit_softcapping",
    ),
    ({"model_type": "qwen2", "dual_chunk_attention_config": {}}, "dual_chunk"),
    ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": -1}, "not be negative"),
  ],
)
def test_what_a_family_cannot_honour_is_refused(change, words):
  with pytest.raises(UserError, match="FILE: ") as error:
    LlamaConfig.from_hf({**OLD, **change}, source="FILE")
  assert words in str(error.value)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
    ({"hidden_act": "swiglu"}, "hidden_act is 'swiglu'"),
    ({"sliding_window": 4096}, "sliding_window is 4096"),
    ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
    ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling is"),
    ({"rope_scaling": {"type": "linear", "factor": "x"}}, "numbers"),
    (
      {"rope_parameters": {"rope_type": "default", "beta_fast": 32}},
      "rope_parameters is",
    ),
    ({"num_key_value_heads": 3}, "not a multiple"),
    ({"head_dim": 7}, "head_dim is 7"),
    ({"hidden_size": "32"}, "hidden_size is '32'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
  ],
)
def test_what_cannot_be_honoured_is_refused(change, words):
  with pytest.raises(UserError, match="FILE: ") as error:
    LlamaConfig.from_hf({**OLD, **change}, source="FILE")
  assert words in str(error.value)


def test_a_missing_size_is_named():
  given = {k: v for k, v in OLD.items() if k != "hidden_size"}
  with pytest.raises(UserError, match="hidden_size missing"):
    LlamaConfig.from_hf(given)


def test_from_arch_derives_what_is_not_given():
  config = LlamaConfig.from_arch({"hidden_size": 96, "num_attention_heads": 6})
  assert config.num_key_value_heads == 6
  assert config.head_dim == 16
  assert config.intermediate_size == 256
  rope = LlamaConfig.from_arch({"rope_theta": 500.0}).rope_parameters
  assert rope == Rope(rope_theta=500.0)


def test_from_arch_names_the_nearest_key():
  with pytest.raises(UserError, match="Did you mean 'hidden_size'"):
    LlamaConfig.from_arch({"hiden_size": 32})
  with pytest.raises(UserError, match="Did you mean 'gemma2'"):
    LlamaConfig.from_arch({"model_type": "gemma_2"})
  with pytest.raises(UserError, match="must be a int"):
    LlamaConfig.from_arch({"hidden_size": 32.5})
