"""What makes images of prompts: a diffusers folder's models and tokenizers."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import transformers

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.models.sdxl.pipeline import (
  ENCODERS,
  INDEX,
  Pipeline,
  StoredParts,
  open_pipeline,
)
from jaxpref.models.sdxl.scheduler import Scheduler, read_scheduler
from jaxpref.types import Params


@dataclasses.dataclass(frozen=True)
class ImageModel:
  """A folder and what reads its prompts; no weights are loaded."""

  pipeline: Pipeline
  scheduler: Scheduler
  tokenizers: Mapping[str, Any]  # by the text encoder that reads their ids

  @property
  def definitions(self) -> Mapping[str, Definition]:
    """Of the parts, by the folder's names."""
    return self.pipeline.definitions

  @property
  def factor(self) -> int:
    """Pixels to a latent, along each side."""
    return self.definitions["vae"].config.factor

  @property
  def takes_sizes(self) -> bool:
    """Whether the UNet is told pooled text and sizes beside the context."""
    unet = self.definitions["unet"].config
    return unet.addition_embed_type is not None

  @property
  def takes_rating(self) -> bool:
    """Whether it is told how beautiful the image is to be, as SDXL's refiner.

    That stands in the place of the target size.
    """
    return bool(self.pipeline.index.get("requires_aesthetics_score"))

  @property
  def zero_empty(self) -> bool:
    """Whether no negative prompt is told by zeros, instead of by ''."""
    return bool(self.pipeline.index.get("force_zeros_for_empty_prompt"))

  def load(self, mesh: jax.sharding.Mesh) -> dict[str, Params]:
    """All weights, each tensor straight into its shards."""
    shardings = {
      name: sharding.param_shardings(mesh, each.shapes, each.axes)
      for name, each in self.definitions.items()
    }
    return dict(StoredParts(self.pipeline, shardings))


def open_image_model(settings: config.Model) -> ImageModel:
  """The folder of `config.model.path`.

  Raises UserError for a folder that is not diffusers', lacks a part, or holds
  one that is not supported.
  """
  folder = pathlib.Path(settings.path)
  if not settings.path or not (folder / INDEX).is_file():
    raise UserError(
      f"config.model.path is {settings.path!r}, where there is no {INDEX}. "
      "Give a folder that diffusers saved, with a folder for each part."
    )
  pipeline = open_pipeline(
    folder, dtype=settings.dtype, param_dtype=settings.param_dtype, remat=""
  )
  for names in (("unet",), ("vae",), ENCODERS):
    if not any(name in pipeline.definitions for name in names):
      raise UserError(
        f"{folder / INDEX} names no {names[0]!r}, without which no image can "
        "be made of a prompt. Give the folder of a Stable Diffusion, an SDXL "
        "or its refiner."
      )
  return ImageModel(
    pipeline,
    read_scheduler(folder),
    {
      name: read_tokenizer(folder / name.replace("text_encoder", "tokenizer"))
      for name in pipeline.definitions
      if name in ENCODERS
    },
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


def tell_of_cuts(count: int, model: ImageModel, what: str = "prompts") -> str:
  """What to say where so many texts were cut; '' where none was."""
  if not count:
    return ""
  encoder = model.definitions[next(iter(model.tokenizers))].config
  return (
    f"Warning: {count:,} of the {what} are longer than the "
    f"{encoder.max_position_embeddings} tokens that the model reads; the "
    "rest of them is cut off."
  )


def read_tokenizer(folder: pathlib.Path) -> Any:
  """CLIP's tokenizer; UserError where its files are missing or broken."""
  try:
    if not any(
      all((folder / name).is_file() for name in names)
      for names in (("tokenizer.json",), ("vocab.json", "merges.txt"))
    ):  # transformers would go on without a vocabulary
      raise FileNotFoundError
    return transformers.CLIPTokenizer.from_pretrained(folder)
  except Exception as error:  # whatever a missing or broken file raises
    raise UserError(
      f"{folder}: the tokenizer cannot be read ({type(error).__name__}). The "
      "folder must hold vocab.json and merges.txt, or tokenizer.json, of CLIP."
    ) from error
