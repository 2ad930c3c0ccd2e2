"""Tiny random models of transformers, and their folders."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

import pytest
import torch
import transformers

SIZES = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def make_torch() -> Callable[..., Any]:
  """make_torch("qwen3", **config) -> a Qwen3ForCausalLM in float32."""
  return _random_torch


@pytest.fixture
def folder_of(tmp_path: pathlib.Path) -> Callable[[Any], pathlib.Path]:
  """folder_of(model) -> where it is saved."""

  def save(model: Any) -> pathlib.Path:
    model.save_pretrained(tmp_path / "torch")
    return tmp_path / "torch"

  return save


def _random_torch(model_type: str = "llama", **given: Any) -> Any:
  config = transformers.AutoConfig.for_model(
    model_type, **{**SIZES, **_copy(given)}
  )
  # Only the plain implementation has soft-caps.
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation="eager"
  ).train(False)
  offset = 0.0 if model_type.startswith("gemma") else 1.0
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      # At 1/sqrt(fan_in), not the usual 0.02, at which attention is all but
      # uniform and a wrong RoPE base passes.
      noise = torch.randn(weight.shape, generator=generator)
      if "norm" in name:
        weight.copy_(offset + 0.3 * noise)
      else:
        weight.copy_(noise * weight.shape[-1] ** -0.5)
  return model


def _copy(given: Mapping[str, Any]) -> dict[str, Any]:
  # transformers completes the dict of RoPE parameters in place.
  return {
    key: dict(value) if isinstance(value, dict) else value
    for key, value in given.items()
  }
