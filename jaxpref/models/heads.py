"""Heads that give numbers in place of tokens."""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from jaxpref.errors import UserError
from jaxpref.models.weights import Weight

SCORE = "score.weight"
"""The reward head in a folder of transformers' sequence classifiers."""


class HeadParam(nnx.Param):
  """Of a head: it trains in full, also where the rest has an adapter."""


class RewardHead(nnx.Module):
  """hidden @ kernel in float32: a reward on each axis, zero to begin with.

  So the loss of a comparison begins at that of two equal rewards, whatever
  the seed; the first update moves the head alone.
  """

  def __init__(self, size: int, num_axes: int):
    zeros = jnp.zeros((size, num_axes), jnp.float32)
    self.kernel = HeadParam(zeros, axes=("embed", "reward"))

  def __call__(
    self, hidden: Float[Array, "*tokens embed"]
  ) -> Float32[Array, "*tokens axes"]:
    return jnp.tensordot(hidden.astype(jnp.float32), self.kernel[...], axes=1)


def reward_weight(size: int, num_axes: int) -> Weight:
  """Where the head stands in a folder."""
  return Weight(SCORE, ("score", "kernel"), (num_axes, size), True, True)


def padding(tokenizer: Any, eos_ids: Sequence[int]) -> tuple[int, str] | None:
  """Id and text of a token that pads, and never ends a response."""
  for token in (
    tokenizer.pad_token,
    tokenizer.unk_token,
    tokenizer.bos_token,
  ):
    if token is not None:
      number = tokenizer.convert_tokens_to_ids(token)
      if number not in eos_ids:
        return number, token
  return None


def to_classifier(
  config: dict[str, Any], axes: Sequence[str], pad_id: int | None
) -> dict[str, Any]:
  """config.json of the sequence classifier over the same model.

  transformers reads the score at the last token that is not `pad_token_id`.
  That must be no token with which a response ends, or it would look at the
  one before it.
  """
  names = {str(number): name for number, name in enumerate(axes)}
  causal = config["architectures"][0]
  return {
    **config,
    "architectures": [
      causal.replace("ForCausalLM", "ForSequenceClassification")
    ],
    "id2label": names,
    "label2id": {name: int(number) for number, name in names.items()},
    "pad_token_id": pad_id,
  }


def reward_axes(
  given: Any, asked: Sequence[str], source: str
) -> tuple[str, ...]:
  """Names of the rewards of a model.

  Args:
    given: the content of config.json; {} for random weights.
    asked: config.model.reward_axes; () = those of the model, else one.
    source: what to call config.json.

  Raises UserError where the model has a head with others.
  """
  if len(set(asked)) < len(asked) or not all(asked):
    raise UserError(
      f"config.model.reward_axes is {tuple(asked)}; give each axis of the "
      "reward a name of its own."
    )
  architectures = given.get("architectures") or [""]
  if not architectures[0].endswith("ForSequenceClassification"):
    return tuple(asked) or ("reward",)
  labels = given.get("id2label") or {}
  found = tuple(str(labels[key]) for key in sorted(labels, key=int))
  if not asked:
    return found or ("reward",)
  generic = tuple(f"LABEL_{number}" for number in range(len(asked)))
  if found not in (tuple(asked), generic):
    raise UserError(
      f"config.model.reward_axes is {tuple(asked)}, and {source} has the "
      f"rewards {found}. Leave it out to go on with those, or take a model "
      "without a reward head to begin with new ones."
    )
  return tuple(asked)
