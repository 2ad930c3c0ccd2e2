"""Folders of transformers that rate images: a CLIP, or a tower with a head.

A `CLIPModel` has both towers and rates how well an image fits a text: OpenAI's
and OpenCLIP's models, and those tuned on preferences, as PickScore. The class
`AestheticsPredictorV2Linear` is a vision tower with the linear layers of
LAION's aesthetic predictor, and rates images alone.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from jaxpref.errors import UserError
from jaxpref.models.build import Definition, bind, define
from jaxpref.models.sdxl.clip_config import (
  TEXT_PROJECTED,
  VISION,
  ClipTextConfig,
  ClipVisionConfig,
)
from jaxpref.models.sdxl.parts import class_name
from jaxpref.models.tensors import (
  Reading,
  check_table,
  load_tensors,
  open_tensors,
  read_json,
)
from jaxpref.types import Params

CLIP, AESTHETIC = "CLIPModel", "AestheticsPredictorV2Linear"

_TEXT = ("text_model.", "text_projection.")
_IMAGE = ("vision_model.", "visual_projection.")
_SCALE = "logit_scale"
_HEAD = "layers."


@dataclasses.dataclass(frozen=True)
class ClipFolder:
  """A folder that was looked at; no weights are loaded."""

  folder: pathlib.Path
  vision: Definition
  text: Definition | None  # None: it rates images alone


def open_clip(folder: str | pathlib.Path) -> ClipFolder:
  """Raises UserError for a folder that is no such model, or is not whole."""
  folder = pathlib.Path(folder)
  path = folder / "config.json"
  given = read_json(path)
  kind = class_name(given)
  if kind not in (CLIP, AESTHETIC):
    raise UserError(
      f"{path}: the model's class is {kind!r}; what rates images is a {CLIP} "
      f"(such as PickScore) or an {AESTHETIC}. Choose one of them."
    )
  size = {key: given[key] for key in ("projection_dim",) if key in given}
  own = given if kind == AESTHETIC else given.get("vision_config", {}) | size
  vision = _define(ClipVisionConfig, own, VISION, path)
  text = None
  if kind == CLIP:
    own = given.get("text_config", {}) | size
    text = _define(ClipTextConfig, own, TEXT_PROJECTED, path)
  found = ClipFolder(folder, vision, text)
  with contextlib.ExitStack() as stack:
    tensors = open_tensors(folder, stack, Reading())
    for definition, prefixes in _towers(found):
      reading = Reading(rename=_only(prefixes))
      own = open_tensors(folder, stack, reading)
      check_table(folder, own, definition.table, definition.shapes)
    known = (*_TEXT, *_IMAGE, _SCALE) if text else (*_IMAGE, _HEAD)
    rest = [name for name in tensors if not name.startswith(known)]
    needed = _SCALE if text else _HEAD
    if rest or not any(name.startswith(needed) for name in tensors):
      raise UserError(
        f"{folder}: its safetensors hold {', '.join(rest[:4]) or 'no'} "
        f"{'' if rest else needed}, and a {kind} has them "
        f"{'not' if rest else 'all'}. Download the folder again."
      )
  return found


def load_clip(clip: ClipFolder) -> dict[str, Params]:
  """Its parameters, on one device: `vision`, and `text` or `head`."""
  params = {}
  for name, (definition, prefixes) in zip(
    ("vision", "text"), _towers(clip), strict=False
  ):
    reading = Reading(rename=_only(prefixes))
    params[name] = load_tensors(clip.folder, definition, None, reading)
  with contextlib.ExitStack() as stack:
    tensors = open_tensors(clip.folder, stack, Reading())
    read = lambda name: jnp.asarray(tensors[name].read(), jnp.float32)
    if clip.text:
      params["head"] = {"scale": read(_SCALE).reshape(())}
    else:
      names = (name for name in tensors if name.startswith(_HEAD))
      numbers = sorted({int(name.split(".")[1]) for name in names})
      params["head"] = {
        f"{place:02d}": {
          "kernel": read(f"{_HEAD}{number}.weight").T,
          "bias": read(f"{_HEAD}{number}.bias"),
        }
        for place, number in enumerate(numbers)
      }
  return params


def rate(
  clip: ClipFolder,
  params: Mapping[str, Params],
  pixels: Float32[Array, "images Y X 3"],
  texts: Float32[Array, "images P"] | None,
) -> Float32[Array, " images"]:
  """What the model says of each image, with its text where it reads texts.

  Of a CLIP: exp(logit_scale) times the cosine of both vectors, which is what
  transformers calls `logits_per_image`, and PickScore its score.

  Args:
    clip: the folder.
    params: of `load_clip`.
    pixels: as the vision tower wants them.
    texts: of `text_vectors`.
  """
  image = _unit(bind(clip.vision, params["vision"])(pixels))
  head = params["head"]
  if clip.text is None:
    for place in sorted(head):  # linear layers, with nothing between them
      image = image @ head[place]["kernel"] + head[place]["bias"][None]
    return image[:, 0]
  assert texts is not None
  return jnp.exp(head["scale"]) * jnp.sum(image * texts, axis=-1)


def text_vectors(
  clip: ClipFolder,
  params: Mapping[str, Params],
  ids: Int32[Array, "texts tokens"],
) -> Float32[Array, "texts P"]:
  """Of length 1, of texts that are padded after their end."""
  assert clip.text
  return _unit(bind(clip.text, params["text"])(ids).pooled)


def _unit(x: Float[Array, "rows P"]) -> Float32[Array, "rows P"]:
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _towers(clip: ClipFolder) -> list[tuple[Definition, tuple[str, ...]]]:
  towers: list[tuple[Definition, tuple[str, ...]]] = [(clip.vision, _IMAGE)]
  return [*towers, (clip.text, _TEXT)] if clip.text else towers


def _define(
  kind: Any, given: Mapping[str, Any], name: str, path: pathlib.Path
) -> Definition:
  config = kind.from_json({**given, "architectures": [name]}, source=str(path))
  return define(config, dtype="float32", remat="")


def _only(prefixes: tuple[str, ...]) -> Callable[[str], str | None]:
  def rename(name: str) -> str | None:
    if name.endswith("embeddings.position_ids"):
      return None  # a buffer in old files
    return name if name.startswith(prefixes) else None

  return rename
