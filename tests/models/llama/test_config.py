"""config.json of several generations, and the random architectures."""

import pytest
import transformers

from jaxpref.errors import UserError
from jaxpref.models.llama.config import LlamaConfig
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


def test_defaults_are_those_of_transformers():
  needed = {k: OLD[k] for k in list(OLD)[1:7]}
  config = LlamaConfig.from_hf(needed)
  theirs = transformers.LlamaConfig.from_dict(dict(needed))
  for name in (
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
  ):
    assert getattr(config, name) == getattr(theirs, name), name
  assert config.rope_parameters.rope_theta == 10000.0


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"model_type": "mistral"}, "model_type is 'mistral'"),
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
  with pytest.raises(UserError, match="must be a int"):
    LlamaConfig.from_arch({"hidden_size": 32.5})
