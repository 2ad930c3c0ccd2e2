"""What says which of the images is better that a model samples in training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float32, UInt8
import numpy as np

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.score.clip import ClipScorer, open_scorer
from jaxpref.score.raters import RATERS
from jaxpref.types import Params

ROLE = "rater"
"""Of the weights of what rates, among the frozen ones."""

Rate = Callable[
  [Mapping[str, Any], UInt8[Array, "images Y X 3"], Any],
  Float32[Array, " images"],
]
"""(frozen parameters by role, pixels, described texts) -> rewards."""


class Reward(NamedTuple):
  """A rater, and what it needs beside the images."""

  rate: Rate
  scorer: ClipScorer | None  # whose weights and texts it takes


def find_reward(settings: config.Score) -> Reward:
  """Of `score.rater`, or of the one model of `score.models`.

  Raises UserError unless there is one of them.
  """
  models = dict(settings.models)
  if bool(settings.rater) + len(models) != 1:
    named = [x for x in (settings.rater, *models) if x]
    raise UserError(
      "A loss of sampled images compares them by one reward, and config.score "
      f"names {', '.join(named) or 'none'}. Name one: a rater such as red in "
      "config.score.rater, or a model, as --config.score.models.pickscore="
      "FOLDER."
    )
  if settings.rater:
    rater = RATERS[settings.rater]
    return Reward(lambda frozen, pixels, texts: rater(pixels), None)
  scorer = open_scorer(next(iter(models.values())))

  def rate(
    frozen: Mapping[str, Any], pixels: jax.Array, texts: Any
  ) -> jax.Array:
    return scorer.rate_pixels(frozen[ROLE], pixels, texts)

  return Reward(rate, scorer)


def describe_all(
  scorer: ClipScorer | None, captions: Sequence[str]
) -> Mapping[str, np.ndarray] | None:
  """What the rater takes of each caption, once; None if it takes nothing."""
  texts = list(dict.fromkeys(captions))
  vectors = scorer.describe(texts) if scorer else None
  return None if vectors is None else dict(zip(texts, vectors, strict=True))


def place_rater(scorer: ClipScorer, mesh: jax.sharding.Mesh) -> Params:
  """Its weights on every device, of this process and of others."""
  everywhere = sharding.replicated(mesh)

  def place(x: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(x.shape, everywhere, x.__getitem__)

  return jax.tree.map(place, jax.device_get(scorer.params))
