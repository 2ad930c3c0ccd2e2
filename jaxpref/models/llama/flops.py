"""What a forward pass must compute: the useful floating-point operations.

A multiply-add is two. Products only, as everywhere in this count: norms,
activations and softmax are not worth a percent. Pads, what is computed again
to save memory and repeated prompts do not count.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpref.models.build import Definition
from jaxpref.models.llama.config import SLIDING


class Tree(NamedTuple):
  """Tokens of a prompt, and of each response that follows it."""

  prompt: int
  responses: tuple[int, ...]


class Forward(NamedTuple):
  """Operations of a forward pass, apart as a backward pass weighs them."""

  linear: float  # products with the model's weights, the head's among them
  attention: float  # queries with keys, and weights with values
  adapter: float  # products with an adapter's factors


def forward_flops(definition: Definition, trees: Iterable[Tree]) -> Forward:
  """Operations of one forward pass over these trees.

  Every token of a prompt goes through the blocks once, however many responses
  follow; the head sees response tokens only, each of which is scored once. The
  model's virtual tokens stand before every prompt.
  """
  config, virtual = definition.config, definition.prompt.length
  trees = [Tree(virtual + prompt, responses) for prompt, responses in trees]
  scored = sum(sum(tree.responses) for tree in trees)
  tokens = scored + sum(tree.prompt for tree in trees)
  whole, lora = definition.base or definition, definition.lora.rank
  head = config.vocab_size * config.hidden_size
  sliding = config.layers().count(SLIDING)
  full = config.num_hidden_layers - sliding
  pairs = sum(
    full * _seen(tree) + sliding * _seen(tree, config.sliding_window)
    for tree in trees
  )
  width = config.num_attention_heads * config.head_dim
  return Forward(
    linear=2.0 * (tokens * _kernels(whole.shapes["layers"]) + scored * head),
    attention=4.0 * width * pairs,
    adapter=2.0 * tokens * _size(definition.shapes) if lora else 0.0,
  )


def _seen(tree: Tree, window: int = 0) -> int:
  """Pairs of a token and one that it sees, itself among them."""
  prompt = _pairs(tree.prompt, window)
  ends = (_pairs(tree.prompt + n, window) for n in tree.responses)
  return prompt + sum(end - prompt for end in ends)


def _pairs(length: int, window: int) -> int:
  """Of one causal sequence; a token sees `window` of them at most, 0 = all."""
  seen = min(length, window or length)
  return seen * (seen + 1) // 2 + (length - seen) * seen


def _kernels(shapes: Any) -> int:
  """Weights that take part in products: no biases, no scales of norms."""
  leaves = jax.tree.leaves_with_path(shapes)
  return sum(_size(x) for path, x in leaves if path[-1].key == "kernel")


def _size(shapes: Any) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
