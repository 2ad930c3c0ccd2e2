"""The stage `sample` for images: a file of prompts to a folder of PNGs."""

import json
import pathlib
from typing import Any

import jax

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.hosts import say
from jaxpref.models.sdxl.image_model import (
  open_image_model,
  tell_of_cuts,
  tokenize,
)
from jaxpref.sample.album import Album, read_starts
from jaxpref.sample.image import make_images, make_recipe
from jaxpref.sample.prompts import KINDS, read_captions


def sample_images(
  settings: config.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> pathlib.Path:
  """Makes `per_prompt` images of each prompt; those that are there stay.

  Stopped at any moment, it goes on and ends with the same bits.

  Returns: the contact sheet.

  Raises UserError for what the user can mend; nothing is written then.
  """
  sample = settings.sample
  prompts = [p for p in _prompts(sample) for _ in range(sample.per_prompt)]
  model = open_image_model(settings.model)
  image = read_starts(sample.image, prompts) if sample.image else None
  if model.takes_rating and not image:
    raise UserError(
      f"{settings.model.path} refines images, and config.sample.image is "
      "empty. Give an image, or the folder samples/ of another run."
    )
  recipe = make_recipe(model, sample, image)
  told = _told(settings, recipe.height, recipe.width, model.takes_rating)
  album = Album(workdir / "samples", prompts, told)
  if told_of_cuts := tell_of_cuts(tokenize(model, prompts)[1], model):
    say(told_of_cuts)
  with jax.set_mesh(mesh):
    rows = sharding.shards("batch")
    batches = [
      range(start, min(start + rows, len(prompts)))
      for start in range(0, len(prompts), rows)
    ]
    left = [batch for batch in batches if album.missing(batch)]
    write_config(settings, workdir)
    if left:
      make = make_images(model, recipe)
      params = model.load(mesh)
    for batch in left:
      pixels = make(params, [prompts[i] for i in batch], list(batch))
      if jax.process_index() == 0:
        for number, each in zip(batch, pixels, strict=True):
          album.put(number, each)
      say(f"{batch[-1] + 1} of {len(prompts)} images")
  return album.close() if jax.process_index() == 0 else workdir


def _prompts(sample: config.Sample) -> list[str]:
  if not sample.prompts:
    raise UserError(f"config.sample.prompts is empty. Give {KINDS}.")
  return read_captions(pathlib.Path(sample.prompts))


def _told(
  settings: config.Config, height: int, width: int, rated: bool
) -> dict[str, Any]:
  """What decides an image beside its prompt and its number."""
  sample = settings.sample
  told = {
    "model": settings.model.path,
    "seed": sample.seed,
    "sampler": sample.sampler or "the model's own",
    "steps": sample.steps,
    "guidance": sample.guidance,
    "guidance_rescale": sample.guidance_rescale,
    "negative_prompt": sample.negative_prompt,
    "height": height,
    "width": width,
    "dtype": settings.model.dtype,
    "param_dtype": settings.model.param_dtype,
  }
  if rated:
    scores = sample.aesthetic_score, sample.negative_aesthetic_score
    told |= {"aesthetic_scores": list(scores)}
  if sample.image:
    told |= {"start": sample.image, "strength": sample.strength}
  return told


def write_config(settings: config.Config, workdir: pathlib.Path) -> None:
  """The run folder with its config.json."""
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  with replacing(workdir / "config.json") as partial:
    partial.write_text(json.dumps(config.to_dict(settings), indent=2) + "\n")
