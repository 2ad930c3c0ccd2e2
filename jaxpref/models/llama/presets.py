"""Shapes of published models by name, for random weights and for planning.

Each holds the keys of its config.json that decide the shape of the model and
its output; a test holds it to the published number of parameters.
"""

from typing import Any

Preset = dict[str, Any]


def _llama3(
  width: int, mlp: int, layers: int, heads: int, **others: Any
) -> Preset:
  factor = others.pop("factor", 8.0)
  return {
    "vocab_size": 128256,
    **_sizes(width, mlp, layers, heads, kv_heads=8),
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
      "rope_type": "llama3",
      "factor": factor,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    },
    **others,
  }


def _sizes(
  width: int, mlp: int, layers: int, heads: int, kv_heads: int
) -> Preset:
  return {
    "hidden_size": width,
    "intermediate_size": mlp,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
  }


def _mistral(vocab: int, window: int | None, theta: float) -> Preset:
  return {
    "model_type": "mistral",
    "vocab_size": vocab,
    **_sizes(4096, 14336, 32, 32, kv_heads=8),
    "max_position_embeddings": 32768,
    "sliding_window": window,
    "rope_theta": theta,
  }


def _qwen(
  model_type: str, width: int, mlp: int, layers: int, heads: int, kv_heads: int
) -> Preset:
  return {
    "model_type": model_type,
    **_sizes(width, mlp, layers, heads, kv_heads),
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
  }


def _qwen25(
  width: int, mlp: int, layers: int, heads: int, kv_heads: int, *, tied: bool
) -> Preset:
  """As the Instruct models state it; some of the base ones have another eps."""
  # At 3B and below; above it the vocabulary is padded further.
  vocab = 151936 if tied else 152064
  return {
    **_qwen("qwen2", width, mlp, layers, heads, kv_heads),
    "vocab_size": vocab,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": tied,
  }


def _qwen3(
  width: int, mlp: int, layers: int, heads: int, *, tied: bool
) -> Preset:
  return {
    **_qwen("qwen3", width, mlp, layers, heads, kv_heads=8),
    "vocab_size": 151936,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": tied,
  }


def _gemma2(
  width: int, mlp: int, layers: int, heads: int, head_dim: int, scalar: int
) -> Preset:
  return {
    "model_type": "gemma2",
    "vocab_size": 256000,
    **_sizes(width, mlp, layers, heads, kv_heads=heads // 2),
    "head_dim": head_dim,
    "query_pre_attn_scalar": scalar,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
  }


PRESETS: dict[str, Preset] = {
  "llama-2-7b": {
    **_sizes(4096, 11008, 32, 32, kv_heads=32),
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
  },
  "llama-3.1-8b": _llama3(4096, 14336, 32, 32),
  "llama-3.1-70b": _llama3(8192, 28672, 80, 64),
  "llama-3.2-1b": _llama3(
    2048, 8192, 16, 32, factor=32.0, tie_word_embeddings=True
  ),
  "llama-3.2-3b": _llama3(
    3072, 8192, 28, 24, factor=32.0, tie_word_embeddings=True
  ),
  "llama-3.3-70b": _llama3(8192, 28672, 80, 64),
  "mistral-7b-v0.1": _mistral(32000, window=4096, theta=10000.0),
  "mistral-7b-v0.3": _mistral(32768, window=None, theta=1000000.0),
  "qwen2.5-0.5b": _qwen25(896, 4864, 24, 14, 2, tied=True),
  "qwen2.5-1.5b": _qwen25(1536, 8960, 28, 12, 2, tied=True),
  "qwen2.5-3b": _qwen25(2048, 11008, 36, 16, 2, tied=True),
  "qwen2.5-7b": _qwen25(3584, 18944, 28, 28, 4, tied=False),
  "qwen2.5-14b": _qwen25(5120, 13824, 48, 40, 8, tied=False),
  "qwen2.5-32b": _qwen25(5120, 27648, 64, 40, 8, tied=False),
  "qwen2.5-72b": _qwen25(8192, 29568, 80, 64, 8, tied=False),
  "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
  "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tied=True),
  "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
  "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
  "qwen3-14b": _qwen3(5120, 17408, 40, 40, tied=False),
  "qwen3-32b": _qwen3(5120, 25600, 64, 64, tied=False),
  "gemma-2-2b": _gemma2(2304, 9216, 26, 8, head_dim=256, scalar=256),
  "gemma-2-9b": _gemma2(3584, 14336, 42, 16, head_dim=256, scalar=256),
  "gemma-2-27b": _gemma2(4608, 36864, 46, 32, head_dim=128, scalar=144),
  "gemma-3-1b": {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    **_sizes(1152, 6912, 26, 4, kv_heads=1),
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
  },
}
