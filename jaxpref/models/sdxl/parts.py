"""One part of a diffusers folder: a config.json and safetensors.

A part's class stands in its config.json, as `_class_name` (diffusers) or
`architectures` (transformers).
"""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

import jax

from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.models.export import (
  check_replaceable,
  replace_folder,
  start_folder,
  write_json,
  write_tensors,
)
from jaxpref.models.sdxl.clip_config import (
  TEXT,
  TEXT_PROJECTED,
  VISION,
  ClipTextConfig,
  ClipVisionConfig,
)
from jaxpref.models.sdxl.config import UNetConfig
from jaxpref.models.sdxl.vae_config import VaeConfig
from jaxpref.models.tensors import (
  Files,
  Reading,
  check_tensors,
  load_tensors,
  read_json,
)
from jaxpref.types import Params


class _Kind(NamedTuple):
  config: Any  # with from_json and to_json
  stem: str  # of its files
  rename: Callable[[str], str | None] = str


_DIFFUSERS = "diffusion_pytorch_model"
_OLD = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}


def _rename_old(name: str) -> str:
  # Autoencoders saved before diffusers 0.12 name their attention otherwise.
  *path, layer, kind = name.split(".")
  return ".".join([*path, _OLD.get(layer, layer), kind])


def _rename_clip(name: str) -> str | None:
  if name.endswith("embeddings.position_ids"):
    return None  # a buffer in old files
  # transformers 5 leaves out the tower's name where there is one tower only.
  first = name.split(".")[0]
  bare = first in ("embeddings", "encoder", "final_layer_norm")
  return f"text_model.{name}" if bare else name


_KINDS = {
  "UNet2DConditionModel": _Kind(UNetConfig, _DIFFUSERS),
  "AutoencoderKL": _Kind(VaeConfig, _DIFFUSERS, _rename_old),
  TEXT: _Kind(ClipTextConfig, "model", _rename_clip),
  TEXT_PROJECTED: _Kind(ClipTextConfig, "model", _rename_clip),
  VISION: _Kind(ClipVisionConfig, "model", _rename_clip),
}


def read_part(folder: str | pathlib.Path) -> Any:
  """The config of a part; UserError where it is missing or foreign."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UserError(
      f"{folder}: there is no such folder. Give the folder of a model that "
      "diffusers saved."
    )
  path = folder / "config.json"
  given = read_json(path)
  name = class_name(given)
  if name not in _KINDS:
    raise UserError(
      f"{path}: the model's class is {name!r}; supported are "
      f"{', '.join(_KINDS)}. Choose a model of one of them."
    )
  return _KINDS[name].config.from_json(given, source=str(path))


def load_part(
  folder: str | pathlib.Path,
  definition: Definition,
  shardings: Any = None,
  *,
  variant: str = "",
) -> Params:
  """Parameters of a part, each tensor read once and cut into its shards.

  Args:
    folder: of the part.
    definition: of its config; tensors are cast to its dtypes.
    shardings: a nested dict of shardings; None puts all on one device.
    variant: such as 'fp16', part of the files' names; '' takes the plain
      files, or the only variant that there is.

  Raises UserError for a file or a tensor that is missing, broken or of
  another shape.
  """
  folder = pathlib.Path(folder)
  reading = _reading(folder, definition, variant)
  return load_tensors(folder, definition, shardings, reading)


def check_part(
  folder: str | pathlib.Path, definition: Definition, *, variant: str = ""
) -> None:
  """Raises UserError where `load_part` would; reads no tensor."""
  folder = pathlib.Path(folder)
  check_tensors(folder, definition, _reading(folder, definition, variant))


def save_part(
  folder: str | pathlib.Path,
  definition: Definition,
  params: Params,
  *,
  variant: str = "",
  max_file_bytes: int = 10**10,
) -> None:
  """Writes config.json and safetensors, in the dtype of the parameters.

  Written beside `folder` and renamed at the end. In a run of several
  processes all must call it, and the first one writes.
  """
  folder = pathlib.Path(folder)
  check_replaceable(folder)
  partial = start_folder(folder)
  write_part(partial, definition, params, variant, max_file_bytes)
  if jax.process_index() == 0:
    replace_folder(folder, partial)


def write_part(
  folder: pathlib.Path,
  definition: Definition,
  params: Params,
  variant: str = "",
  max_file_bytes: int = 10**10,
) -> None:
  """As `save_part`, into an empty folder."""
  files = Files(_kind(definition.config).stem, variant)
  write_tensors(folder, definition, params, files, max_file_bytes)
  if jax.process_index() == 0:
    config = definition.config.to_json()
    dtype = str(jax.tree.leaves(params)[0].dtype)
    known = {"dtype": dtype, "torch_dtype": dtype}
    config |= {key: known[key] for key in known if key in config}
    write_json(folder / "config.json", config)


def class_name(given: Any) -> str:
  """The class that a config.json names; '' for none."""
  if not isinstance(given, dict):
    return type(given).__name__
  names = given.get("architectures") or [""]
  return str(given.get("_class_name") or names[0])


def _kind(config: Any) -> _Kind:
  return _KINDS[class_name(config.to_json())]


def _reading(
  folder: pathlib.Path, definition: Definition, variant: str
) -> Reading:
  kind = _kind(definition.config)
  files = Files(kind.stem, variant)
  if not variant and not _there(folder, files):
    variants = {
      *_middles(folder, f"{kind.stem}.", ".safetensors"),
      *_middles(folder, f"{kind.stem}.safetensors.index.", ".json"),
    }
    whole = [Files(kind.stem, each) for each in sorted(variants)]
    whole = [each for each in whole if _there(folder, each)]
    files = whole[0] if len(whole) == 1 else files
  return Reading(files, kind.rename)


def _middles(folder: pathlib.Path, start: str, end: str) -> list[str]:
  """What stands between in the names of the files that begin and end so."""
  names = [path.name for path in folder.glob(f"{start}*{end}")]
  middles = [name.removeprefix(start).removesuffix(end) for name in names]
  return [each for each in middles if each.isalnum()]  # no shard's number


def _there(folder: pathlib.Path, files: Files) -> bool:
  return any((folder / name).is_file() for name in (files.single, files.index))
