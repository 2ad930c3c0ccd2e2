"""Attention over causal sequences, and what brings packed rows into them."""

from jaxpref.ops.attention.backends import (
  resolve_backend,
  sequence_attention,
)
from jaxpref.ops.attention.cudnn import cudnn_attention
from jaxpref.ops.attention.kind import Attend, Kind, sees
from jaxpref.ops.attention.layouts import packed_attention, padded_attention
from jaxpref.ops.attention.splash import splash_attention
from jaxpref.ops.attention.xla import causal_attention, masked_attention

__all__ = [
  "Attend",
  "Kind",
  "causal_attention",
  "cudnn_attention",
  "masked_attention",
  "packed_attention",
  "padded_attention",
  "resolve_backend",
  "sees",
  "sequence_attention",
  "splash_attention",
]
