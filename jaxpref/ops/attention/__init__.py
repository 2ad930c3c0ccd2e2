"""Attention over causal sequences, and what brings packed rows into them."""

from jaxpref.ops.attention.kind import Attend, Kind, sees
from jaxpref.ops.attention.layouts import packed_attention, padded_attention
from jaxpref.ops.attention.xla import causal_attention, masked_attention

__all__ = [
  "Attend",
  "Kind",
  "causal_attention",
  "masked_attention",
  "packed_attention",
  "padded_attention",
  "sees",
]
