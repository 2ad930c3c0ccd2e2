"""Shapes of published models by name, for random weights and for planning.

Each holds the keys of its config.json that decide the shape of the model and
its output; a test holds it to the published number of parameters.
"""

from typing import Any

_LLAMA3 = {
  "vocab_size": 128256,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "max_position_embeddings": 131072,
  "rope_theta": 500000.0,
}
_SCALING = {
  "rope_type": "llama3",
  "factor": 8.0,  # 32 in 3.2
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}

PRESETS: dict[str, dict[str, Any]] = {
  "llama-2-7b": {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
  },
  "llama-3.1-8b": {
    **_LLAMA3,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rope_scaling": _SCALING,
  },
  "llama-3.1-70b": {  # and 3.3
    **_LLAMA3,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "rope_scaling": _SCALING,
  },
  "llama-3.2-1b": {
    **_LLAMA3,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rope_scaling": {**_SCALING, "factor": 32.0},
  },
  "llama-3.2-3b": {
    **_LLAMA3,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "tie_word_embeddings": True,
    "rope_scaling": {**_SCALING, "factor": 32.0},
  },
}
