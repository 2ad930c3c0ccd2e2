"""Published models by name."""

import math

import jax
import pytest

from jaxpref.errors import UserError
from jaxpref.models.build import define
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.presets import PRESETS

# As published, counted in their safetensors files.
PARAMETERS = {
  "llama-2-7b": 6_738_415_616,
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.1-70b": 70_553_706_496,
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name):
  config = LlamaConfig.from_arch({"preset": name})
  shapes = jax.tree.leaves(define(config, dtype="bfloat16").shapes)
  assert sum(math.prod(leaf.shape) for leaf in shapes) == PARAMETERS[name]


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
