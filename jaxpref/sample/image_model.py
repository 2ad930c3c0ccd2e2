"""What makes images of prompts: a diffusers folder's models and tokenizers."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32
import numpy as np
import transformers

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.models.build import Definition, bind, define
from jaxpref.models.sdxl.parts import check_part, load_part, read_part
from jaxpref.models.tensors import read_json
from jaxpref.sample.scheduler import Scheduler, read_scheduler
from jaxpref.types import Params

_ENCODERS = ("text_encoder", "text_encoder_2")


class Text(NamedTuple):
  """What the UNet is told of prompts."""

  context: Float[Array, "texts tokens D"]
  pooled: Float[Array, "texts P"]


@dataclasses.dataclass(frozen=True)
class ImageModel:
  """A folder that was looked at; no weights are loaded."""

  folder: pathlib.Path
  definitions: Mapping[str, Definition]  # by the folder's names of its parts
  scheduler: Scheduler
  tokenizers: Mapping[str, Any]  # by the text encoder that reads their ids
  zero_empty: bool  # no negative prompt is told by zeros, instead of by ''

  @property
  def factor(self) -> int:
    """Pixels to a latent, along each side."""
    return self.definitions["vae"].config.factor

  @property
  def takes_sizes(self) -> bool:
    """Whether the UNet is told pooled text and sizes beside the context."""
    unet = self.definitions["unet"].config
    return unet.addition_embed_type is not None

  def load(self, mesh: jax.sharding.Mesh) -> dict[str, Params]:
    """All weights, each tensor straight into its shards."""
    return {
      name: load_part(
        self.folder / name,
        each,
        sharding.param_shardings(mesh, each.shapes, each.axes),
      )
      for name, each in self.definitions.items()
    }


def open_image_model(settings: config.Model) -> ImageModel:
  """The folder of `config.model.path`.

  Raises UserError for a folder that is not diffusers', lacks a part, or holds
  one that is not supported.
  """
  folder, definitions = pathlib.Path(settings.path), {}
  index = _read_index(settings.path)
  encoders = [name for name in _ENCODERS if name in index]
  for name in ("unet", "vae", *encoders):
    definitions[name] = define(
      read_part(folder / name),
      dtype=settings.dtype,
      param_dtype=settings.param_dtype,
      remat="",
    )
    check_part(folder / name, definitions[name])
  return ImageModel(
    folder,
    definitions,
    read_scheduler(folder),
    {
      name: _tokenizer(folder / name.replace("text_encoder", "tokenizer"))
      for name in encoders
    },
    bool(index.get("force_zeros_for_empty_prompt")),
  )


def tokenize(
  model: ImageModel, prompts: Sequence[str]
) -> tuple[dict[str, np.ndarray], int]:
  """Token ids for each encoder, [prompts, places], and how many were cut.

  A prompt that is too long keeps its beginning and an end-of-text token.
  """
  ids, too_long = {}, np.zeros(len(prompts), bool)
  for name, tokenizer in model.tokenizers.items():
    places = model.definitions[name].config.max_position_embeddings
    rows = np.full((len(prompts), places), tokenizer.pad_token_id, np.int32)
    for number, prompt in enumerate(prompts):
      row = tokenizer(prompt, verbose=False).input_ids
      too_long[number] |= len(row) > places
      if len(row) > places:
        row = [*row[: places - 1], tokenizer.eos_token_id]
      rows[number, : len(row)] = row
    ids[name] = rows
  return ids, int(too_long.sum())


def encode_text(
  model: ImageModel,
  params: Mapping[str, Params],
  ids: Mapping[str, Int32[Array, "texts tokens"]],
) -> Text:
  """SDXL's context is both encoders' last states but one, side by side, and
  its pooled text the second's; Stable Diffusion takes the last states."""
  states = [
    bind(model.definitions[name], params[name])(rows)
    for name, rows in ids.items()
  ]
  if not model.takes_sizes:
    return Text(states[0].last, states[0].pooled)
  context = jnp.concatenate([each.penultimate for each in states], axis=-1)
  return Text(context, states[-1].pooled)


def _read_index(path: str) -> dict[str, Any]:
  """model_index.json, without the parts that were left out."""
  file = pathlib.Path(path) / "model_index.json"
  if not path or not file.is_file():
    raise UserError(
      f"config.model.path is {path!r}, where there is no model_index.json. "
      "Give a folder that diffusers saved, with a folder for each part."
    )
  given = read_json(file)
  index = {k: x for k, x in given.items() if x != [None, None]}
  for name in ("unet", "vae", "text_encoder"):
    if name not in index:
      raise UserError(
        f"{file} names no {name!r}, without which no image can be made of a "
        "prompt. Give the folder of a Stable Diffusion or an SDXL (whose "
        "refiner, without a first text encoder, is not supported here)."
      )
  return index


def _tokenizer(folder: pathlib.Path) -> Any:
  try:
    return transformers.CLIPTokenizer.from_pretrained(folder)
  except Exception as error:  # whatever a missing or broken file raises
    raise UserError(
      f"{folder}: the tokenizer cannot be read ({type(error).__name__}). The "
      "folder must hold vocab.json and merges.txt, or tokenizer.json, of CLIP."
    ) from error
