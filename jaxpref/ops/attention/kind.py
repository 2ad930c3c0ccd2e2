"""What an attention layer computes, and how models ask for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Int

Attend = Callable[..., tuple[jax.Array, Any]]
"""attend(q, k, v, item, kind) -> (out, item_out), as models call it.

q and out are [rows, tokens, heads, head_dim], k and v have kv_heads; `item` is
what the layer keeps between calls (a cache), None in training; `kind` is a
`Kind`.
"""


class Kind(NamedTuple):
  """What attention a layer does; static."""

  scale: float  # scores are q·k times this
  window: int = 0  # tokens a query sees, itself included; 0 = all before it
  softcap: float = 0.0  # scores become c tanh(scores / c); 0 = off


def sees(
  query: Int[Array, "*#shape"], key: Int[Array, "*#shape"], window: int
) -> Bool[Array, "..."]:
  """Whether places of queries see places of keys of the same sequence.

  The window is that of transformers (`masking_utils.sliding_window_overlay`):
  a query at i sees the keys at j with 0 <= i - j < window.
  """
  causal = key <= query
  return causal & (query - key < window) if window else causal
