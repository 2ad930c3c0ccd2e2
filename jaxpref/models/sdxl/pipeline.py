"""Whole diffusers folders: model_index.json and a folder for each part.

Parts with weights are read as models; schedulers, tokenizers and what else
there is are kept as files, and copied where the folder is saved.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32, Int32, UInt8

from jaxpref.errors import UserError
from jaxpref.models.build import Definition, bind, define
from jaxpref.models.export import (
  check_replaceable,
  replace_folder,
  start_folder,
  write_json,
)
from jaxpref.models.sdxl.parts import (
  check_part,
  class_name,
  load_part,
  read_part,
  write_part,
)
from jaxpref.models.tensors import read_json
from jaxpref.types import Params

INDEX = "model_index.json"
PIPELINES = (
  "StableDiffusionXLPipeline",
  "StableDiffusionXLImg2ImgPipeline",  # what the refiner's folder names
  "StableDiffusionPipeline",
)
_MODELS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder")
ENCODERS = ("text_encoder", "text_encoder_2")


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A folder that was looked at; no weights are loaded."""

  folder: pathlib.Path
  index: dict[str, Any]  # model_index.json
  definitions: dict[str, Definition]  # of each part with weights
  variant: str

  def scheduler(self) -> dict[str, Any]:
    """scheduler_config.json: betas, prediction type, spacing …"""
    return read_json(self.folder / "scheduler" / "scheduler_config.json")


def open_pipeline(
  folder: str | pathlib.Path,
  *,
  dtype: DTypeLike = "float32",
  param_dtype: str = "float32",
  remat: str = "nothing_saveable",
  variant: str = "",
) -> Pipeline:
  """Looks at a folder and all its files' headers.

  Args:
    folder: what diffusers' save_pretrained wrote.
    dtype: of activations.
    param_dtype: of parameters.
    remat: name of a jax.checkpoint policy, '' to keep all activations.
    variant: such as 'fp16', of files that have it in their names; '' takes
      plain files, or the only variant of a part.

  Raises UserError for a folder that is none, a part that is missing, a class
  that is not supported, and files that are broken or do not fit their config.
  """
  folder = pathlib.Path(folder)
  index = _read_index(folder)
  definitions = {}
  for name, config in _read_configs(folder, index).items():
    definitions[name] = define(
      config, dtype=dtype, param_dtype=param_dtype, remat=remat
    )
    check_part(folder / name, definitions[name], variant=variant)
  return Pipeline(folder, index, definitions, variant)


class StoredParts(Mapping[str, Params]):
  """Parameters of each part, read whenever they are asked for."""

  def __init__(
    self, pipeline: Pipeline, shardings: Mapping[str, Any] | None = None
  ):
    self.pipeline, self.shardings = pipeline, shardings or {}

  def __getitem__(self, name: str) -> Params:
    return load_part(
      self.pipeline.folder / name,
      self.pipeline.definitions[name],
      self.shardings.get(name),
      variant=self.pipeline.variant,
    )

  def __iter__(self) -> Iterator[str]:
    return iter(self.pipeline.definitions)

  def __len__(self) -> int:
    return len(self.pipeline.definitions)


def load_pipeline(
  folder: str | pathlib.Path,
  shardings: Mapping[str, Any] | None = None,
  *,
  dtype: DTypeLike = "float32",
  param_dtype: str = "float32",
  remat: str = "nothing_saveable",
  variant: str = "",
) -> tuple[Pipeline, dict[str, Params]]:
  """A folder and all its weights.

  Args: as of `open_pipeline`; shardings are a nested dict for each part, those
    of a part that is not named lie on one device.
  """
  pipeline = open_pipeline(
    folder, dtype=dtype, param_dtype=param_dtype, remat=remat, variant=variant
  )
  return pipeline, dict(StoredParts(pipeline, shardings))


def save_pipeline(
  folder: str | pathlib.Path,
  pipeline: Pipeline,
  params: Mapping[str, Params],
  *,
  variant: str = "",
  max_file_bytes: int = 10**10,
) -> None:
  """Writes a folder that diffusers loads, whole or not at all.

  In a run of several processes all must call it, and the first one writes.

  Args:
    folder: made anew; an earlier export is replaced.
    pipeline: whose parts without weights are copied.
    params: of each part, asked for one after the other (with `StoredParts`
      one at a time is in memory).
    variant: part of the names of the files of weights.
    max_file_bytes: above it, a part's tensors are spread over several files.
  """
  folder = pathlib.Path(folder)
  check_replaceable(folder, INDEX)
  partial = start_folder(folder)
  for name, definition in pipeline.definitions.items():
    if jax.process_index() == 0:
      (partial / name).mkdir()
    place = partial / name
    write_part(place, definition, params[name], variant, max_file_bytes)
  if jax.process_index() != 0:
    return
  for name in _parts(pipeline.index):
    if name not in pipeline.definitions:
      shutil.copytree(pipeline.folder / name, partial / name)
  write_json(partial / INDEX, pipeline.index)
  replace_folder(folder, partial)


def encoders(definitions: Mapping[str, Definition]) -> dict[str, Definition]:
  """Of a pipeline's parts, the autoencoder and the text encoders."""
  names = ("vae", *ENCODERS)
  return {name: definitions[name] for name in names if name in definitions}


def encode_text(
  definitions: Mapping[str, Definition],
  params: Mapping[str, Params],
  ids: Mapping[str, Int32[Array, "texts tokens"]],
) -> tuple[Float[Array, "texts tokens D"], Float[Array, "texts P"]]:
  """The context for the UNet, and the pooled text for SDXL's conditions.

  SDXL takes the penultimate states of its encoders, side by side, and the
  projection of the second; Stable Diffusion 1 and 2 the last states.

  Args:
    definitions: of a pipeline's parts, the text encoders at least.
    params: likewise.
    ids: of each text encoder; its tokenizer pads differently.
  """
  states = {
    name: bind(definitions[name], params[name])(ids[name])
    for name in ENCODERS
    if name in definitions
  }
  if "text_encoder_2" not in states:
    only = states["text_encoder"]
    return only.last, only.pooled
  both = [each.penultimate for each in states.values()]
  context = jnp.concatenate(both, axis=-1)
  return context, states["text_encoder_2"].pooled


def without_decoder(autoencoder: Mapping[str, Any]) -> dict[str, Any]:
  """Of its parameters, or what is of their shape, those that encode."""
  return {
    name: part
    for name, part in autoencoder.items()
    if name not in ("decoder", "post_quant_conv")
  }


def encode_images(
  definitions: Mapping[str, Definition],
  params: Mapping[str, Params],
  pixels: UInt8[Array, "images Y X 3"],
) -> tuple[Float32[Array, "images y x c"], Float32[Array, "images y x c"]]:
  """Mean and standard deviation of latents, scaled as the UNet has them.

  Args:
    definitions: of a pipeline's parts, the autoencoder at least.
    params: likewise; the decoder may be missing.
    pixels: Y and X are multiples of the autoencoder's `factor`.
  """
  whole = definitions["vae"]
  # Of what is missing the shapes stand there, and nothing asks for values.
  vae = bind(whole, {**whole.shapes, **params["vae"]})
  moments = vae.encode(pixels.astype(jnp.float32) / 127.5 - 1.0)
  std = vae.config.scaling_factor * jnp.exp(0.5 * moments.logvar)
  return vae.scale(moments.mean), std


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
  if not folder.is_dir():
    raise UserError(
      f"{folder}: there is no such folder. Give a folder that diffusers saved, "
      f"with {INDEX}."
    )
  if not (folder / INDEX).is_file():
    raise UserError(
      f"{folder}: there is no {INDEX} in it. Give the whole folder of a "
      "pipeline, as diffusers' save_pretrained writes it."
    )
  index = read_json(folder / INDEX)
  kind = index.get("_class_name") if isinstance(index, dict) else index
  if kind not in PIPELINES:
    raise UserError(
      f"{folder / INDEX}: _class_name is {kind!r}; supported are "
      f"{', '.join(PIPELINES)}. Choose a model of one of them."
    )
  return index


def _read_configs(
  folder: pathlib.Path, index: Mapping[str, Any]
) -> dict[str, Any]:
  """The config of each part with weights; all parts are there."""
  configs = {}
  for name, kind in _parts(index).items():
    if not (folder / name).is_dir():
      raise UserError(
        f"{folder / INDEX}: names {name} ({kind}), and there is no folder "
        f"{folder / name}. Download the whole folder."
      )
    if name not in _MODELS:
      continue
    configs[name] = read_part(folder / name)
    found = class_name(configs[name].to_json())
    if found != kind:
      raise UserError(
        f"{folder / INDEX}: {name} is a {kind!r}, and {name}/config.json "
        f"describes a {found!r}. Take both files of the same model."
      )
  if "unet" not in configs:
    raise UserError(
      f"{folder / INDEX}: names no unet. Give the whole folder of a pipeline."
    )
  return configs


def _parts(index: Mapping[str, Any]) -> dict[str, str]:
  """The class of each part that is there."""
  return {
    name: str(value[1])
    for name, value in index.items()
    if isinstance(value, list) and len(value) == 2 and value[1]
  }
