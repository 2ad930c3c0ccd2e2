"""Array aliases, run-time type checks, records and batches.

Imports jax, jaxtyping and beartype only, so that `jaxpref.losses` stays light.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from beartype import beartype
import jax
import jax.numpy as jnp
from jaxtyping import (
  Array,
  ArrayLike,
  Bool,
  Float,
  Float32,
  Int32,
  UInt8,
  jaxtyped,
)
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
  """Checks shapes and dtypes while tracing; a compiled call pays nothing."""

  # Built at the first call: a millisecond or two a function, which importing
  # a hundred losses to use one should not cost.
  @functools.cache
  def build() -> Callable[..., Any]:
    return jaxtyped(function, typechecker=beartype)

  @functools.wraps(function)
  def call(*args: Any, **keywords: Any) -> Any:
    return build()(*args, **keywords)

  return call  # type: ignore[return-value]


if TYPE_CHECKING:
  Leaf = Any  # of a batch: a NumPy array where it is made, then a jax one
  Scalar = float | Array  # an operation with an Array gives an Array
else:
  Leaf = ArrayLike
  Scalar = float | int | np.number | Float[ArrayLike, ""]
"""A hyper-parameter: a plain number, or a traced float scalar."""

Params = Mapping[str, Any]
"""A nested dict of arrays with string keys."""


def check_range(name: str, value: Scalar, low: float, high: float) -> None:
  """Raises ValueError unless low <= value < high; traced values pass."""
  if isinstance(value, jax.core.Tracer):
    return
  if not low <= float(value) < high:
    raise ValueError(
      f"{name} is {float(value):g}; it must be at least {low:g} and below "
      f"{high:g}"
    )


def check_choice(name: str, value: str, *allowed: str) -> None:
  """Raises ValueError unless the value is one of those allowed."""
  if value not in allowed:
    quoted = " or ".join(repr(each) for each in allowed)
    raise ValueError(f"{name} is {value!r}; it must be {quoted}")


class Term(NamedTuple):
  """A sum and how many units it sums, so that accumulation stays exact."""

  total: Float32[Array, ""]
  # How many; depends on the data only.
  count: Float32[Array, ""]  # type: ignore[assignment]  # hides tuple.count


@checked
def sum_valid(
  x: Float32[Array, "*units"],
  valid: Bool[Array, "*units"],
  weight: Float32[Array, "*units"] | float = 1.0,
) -> Term:
  """Sums the valid entries; `weight` scales them, `valid` counts them."""
  # where, not multiply: 0 * nan is nan. The gradient needs finite inputs too,
  # so padding holds a copy of a real entry.
  total = jnp.sum(jnp.where(valid, weight * x, 0.0))
  return Term(total, jnp.sum(valid, dtype=jnp.float32))


@dataclasses.dataclass(frozen=True)
class Image:
  """An encoded image, not decoded yet; `jaxpref.data.pictures` does that."""

  data: bytes = b""  # a PNG, JPEG, WebP …; b"" = it is in the file
  # Absolute, or a URL; '' = none. Beside data, what messages call it.
  path: str = ""
  at: float = 0.0  # in a video, from 0, its first frame, to 1, its last


@dataclasses.dataclass(frozen=True)
class Video:
  """Some frames of a video, in their order, as images."""

  frames: tuple[Image, ...]

  @property
  def still(self) -> Image:
    """The frame in the middle, which stands for it where one image must."""
    return self.frames[len(self.frames) // 2]


PICTURES = (Image, Video)


@dataclasses.dataclass(frozen=True)
class Response:
  """One answer to a prompt: text, chat messages, an image or a video."""

  content: str | Sequence[Mapping[str, str]] | Image | Video
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
  label: bool | None = None
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Comparison(NamedTuple):
  """`better` and `worse` number the record's responses."""

  better: int
  worse: int
  preference: float = 1.0  # P(better is preferred): 1 hard, 0.5 a tie
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Record:
  """A prompt, its responses, and which of them people liked better."""

  id: str  # "FILE:ROW", what messages about the record say
  prompt: str | Sequence[Mapping[str, str]]
  responses: Sequence[Response]
  comparisons: Sequence[Comparison] = ()
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_pytree = functools.partial(jax.tree_util.register_dataclass)


@_pytree
@dataclasses.dataclass(frozen=True)
class Slots:
  """One entry a response, flat over a micro-batch."""

  example_id: Int32[Leaf, "slots"]
  valid: Bool[Leaf, "slots"]
  label: Int32[Leaf, "slots"]  # 1 desirable, 0 undesirable, -1 not labelled
  # An answer to another prompt, from which losses estimate a divergence.
  mismatched: Bool[Leaf, "slots"]
  score: Float32[Leaf, "slots"]  # larger is better; 0 where there is none
  # On each axis that a reward model trains on, if those; NaN where not rated.
  ratings: Float32[Leaf, "slots axes"] | None = None


@_pytree
@dataclasses.dataclass(frozen=True)
class Comparisons:
  """Which slot is better, flat over a micro-batch."""

  better: Int32[Leaf, "pairs"]
  worse: Int32[Leaf, "pairs"]
  valid: Bool[Leaf, "pairs"]
  weight: Float32[Leaf, "pairs"]
  preference: Float32[Leaf, "pairs"]
  # As `preference`, on each axis of `Slots.ratings`; NaN where not compared.
  preferences: Float32[Leaf, "pairs axes"] | None = None


@_pytree
@dataclasses.dataclass(frozen=True)
class Lists:
  """The scored responses to one prompt, a row each, over a micro-batch."""

  slot: Int32[Leaf, "lists items"]
  valid: Bool[Leaf, "lists items"]


@_pytree
@dataclasses.dataclass(frozen=True)
class TextBatch:
  """One micro-batch of packed rows (a step stacks several on a first axis).

  Linear layers see `tokens`, where a prompt stands once. Attention sees one
  causal sequence a response: `expand` gathers them, `collapse` brings the
  outputs back. The head sees only the response tokens.
  """

  tokens: Int32[Leaf, "rows tokens"]
  position: Int32[Leaf, "rows tokens"]
  # One array [rows, sequences, length] a length class: the token of the row
  # that stands at each place of each sequence; padding repeats token 0.
  expand: tuple[Int32[Leaf, "rows _ _"], ...]
  # The place of each token among the concatenated, flattened sequences.
  collapse: Int32[Leaf, "rows tokens"]
  # Response tokens: where the hidden state that predicts each stands, its id,
  # its slot (the number of slots for padding) and the reference's log-prob.
  source: Int32[Leaf, "rows responses"]
  target: Int32[Leaf, "rows responses"]
  slot: Int32[Leaf, "rows responses"]
  ref_token_logp: Float32[Leaf, "rows responses"] | None
  # Where each slot's last token stands among all of the micro-batch's, row
  # after row.
  last: Int32[Leaf, "slots"]
  slots: Slots
  comparisons: Comparisons
  lists: Lists
  # Each sequence begins with so many places for virtual tokens.
  prefix: int = dataclasses.field(default=0, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Pictures:
  """What a micro-batch of images has, encoded or not.

  A slot is an image. The text that a prompt's images share stands once.
  """

  prompt: Int32[Leaf, "slots"]  # which of the texts
  item: Int32[Leaf, "slots"]  # its number among the images of its prompt
  draw: Int32[Leaf, "slots"]  # how often its prompt was drawn before
  sizes: Float32[Leaf, "slots 6"]  # SDXL's conditions, in pixels
  ref_error: Float32[Leaf, "slots"] | None  # of the reference, where cached
  slots: Slots
  comparisons: Comparisons
  lists: Lists


@_pytree
@dataclasses.dataclass(frozen=True)
class ImageBatch(Pictures):
  """One micro-batch of latents (a step stacks several on a first axis)."""

  # Of the autoencoder's posterior, scaled for the UNet; padding is a copy.
  mean: Float32[Leaf, "slots y x c"]
  std: Float32[Leaf, "slots y x c"]
  context: Float32[Leaf, "prompts _ _"]
  pooled: Float32[Leaf, "prompts _"]
  # The texts as what rates images takes them, where it does.
  described: Float32[Leaf, "prompts _"] | None = None

  @property
  def texts(self) -> int:
    """Places for texts in a micro-batch."""
    return self.context.shape[-3]


@_pytree
@dataclasses.dataclass(frozen=True)
class PixelBatch(Pictures):
  """The same before autoencoder and text encoders."""

  pixels: UInt8[Leaf, "slots Y X 3"]  # padding is a copy
  ids: Mapping[str, Int32[Leaf, "prompts tokens"]]  # by the encoder's name

  @property
  def texts(self) -> int:
    """As of `ImageBatch`."""
    return next(iter(self.ids.values())).shape[-2]

  def encoded(self, **arrays: Leaf) -> ImageBatch:
    """The batch of these latents and texts."""
    kept = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(Pictures)
    }
    return ImageBatch(**kept, **arrays)
