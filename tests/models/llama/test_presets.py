"""Published models by name."""

import math

import jax
import pytest
import torch
import transformers

from jaxpref.errors import UserError
from jaxpref.models.build import define
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.families import FULL, SLIDING
from jaxpref.models.llama.presets import PRESETS
from jaxpref.models.llama.weights import weights

# As published; a tied head counts once.
PARAMETERS = {
  "llama-2-7b": 6_738_415_616,
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.1-70b": 70_553_706_496,
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
  "llama-3.3-70b": 70_553_706_496,
  "mistral-7b-v0.1": 7_241_732_096,
  "mistral-7b-v0.3": 7_248_023_552,
  "qwen2.5-0.5b": 494_032_768,
  "qwen2.5-1.5b": 1_543_714_304,
  "qwen2.5-3b": 3_085_938_688,
  "qwen2.5-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "qwen2.5-72b": 72_706_203_648,
  "qwen3-0.6b": 596_049_920,
  "qwen3-1.7b": 1_720_574_976,
  "qwen3-4b": 4_022_468_096,
  "qwen3-8b": 8_190_735_360,
  "qwen3-14b": 14_768_307_200,
  "qwen3-32b": 32_762_123_264,
  "gemma-2-2b": 2_614_341_888,
  "gemma-2-9b": 9_241_705_984,
  "gemma-2-27b": 27_227_128_320,
  "gemma-3-1b": 999_885_952,
}


def _config(name: str) -> LlamaConfig:
  return LlamaConfig.from_arch({"preset": name})


def _count(config: LlamaConfig) -> int:
  layers = config.num_hidden_layers
  return sum(
    math.prod(row.shape) * (layers if row.stacked else 1)
    for row in weights(config)
  )


def test_number_of_parameters():
  assert {name: _count(_config(name)) for name in PRESETS} == PARAMETERS


@pytest.mark.parametrize(
  "name", ["llama-3.1-8b", "qwen2.5-0.5b", "qwen3-32b", "gemma-3-1b"]
)
def test_the_model_has_the_parameters_of_the_table(name):
  config = _config(name)
  shapes = jax.tree.leaves(define(config, dtype="bfloat16").shapes)
  assert sum(math.prod(leaf.shape) for leaf in shapes) == _count(config)


@pytest.mark.certify
@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_the_same(name):
  given = _config(name).to_hf()
  config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
  with torch.device("meta"):
    model = transformers.AutoModelForCausalLM.from_config(config)
  assert sum(each.numel() for each in model.parameters()) == PARAMETERS[name]


def test_what_makes_a_family_is_in_its_presets():
  assert _config("mistral-7b-v0.1").layers() == (SLIDING,) * 32
  assert _config("mistral-7b-v0.3").layers() == (FULL,) * 32
  gemma = _config("gemma-2-9b")
  assert gemma.attn_logit_softcapping == 50.0
  assert gemma.final_logit_softcapping == 30.0
  assert gemma.layers()[:3] == (SLIDING, FULL, SLIDING)
  assert gemma.sliding_window == 4096
  gemma = _config("gemma-3-1b")
  assert gemma.layers()[:6] == (SLIDING,) * 5 + (FULL,)
  assert gemma.rope_parameters.rope_theta == 1000000.0
  assert gemma.local_rope_parameters.rope_theta == 10000.0
  assert _config("qwen3-8b").qk_norm
  assert _config("qwen2.5-7b").qkv_bias


def test_other_keys_change_a_preset():
  arch = {"preset": "llama-3.2-1b", "num_hidden_layers": 2, "rope_theta": 100.0}
  config = LlamaConfig.from_arch(arch)
  assert config.hidden_size == 2048
  assert config.num_hidden_layers == 2
  assert config.rope_parameters.rope_theta == 100.0
  assert config.rope_parameters.factor == 32.0


def test_the_nearest_name_is_told():
  with pytest.raises(UserError, match=r"arch.preset is .*'llama-3.1-8b'"):
    LlamaConfig.from_arch({"preset": "Llama3.1-8b"})
