"""Where a run's weights come from: a Hugging Face folder, or a seed."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.models import huggingface
from jaxpref.models.build import Definition, define, init_params
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.types import Params


@dataclasses.dataclass(frozen=True)
class Source:
  """A model and how to get its weights; nothing is loaded yet."""

  definition: Definition
  path: str  # '' = random weights
  seed: int

  @property
  def identity(self) -> str:
    """A digest of what decides the weights."""
    if self.path:
      return folder_digest(self.path)
    made = json.dumps([repr(self.definition.config), self.seed]).encode()
    return hashlib.blake2b(made, digest_size=16).hexdigest()

  def load(self, shardings: Any) -> Params:
    """The weights, each tensor straight into its shards."""
    if self.path:
      return huggingface.load_params(self.path, self.definition, shardings)
    return init_params(self.definition, jax.random.key(self.seed), shardings)


def open_source(settings: config.Model, *, seed: int, tokenizer: Any) -> Source:
  """The model of `config.model`.

  Raises UserError for a folder or an architecture that cannot be used.
  """
  if settings.path and settings.arch:
    raise UserError(
      "config.model.path and config.model.arch are both set. Keep `path` to "
      "go on from its weights, or `arch` to start from random ones."
    )
  if settings.path:
    shape = huggingface.read_config(settings.path)
  else:
    ids = {
      "vocab_size": len(tokenizer),
      "bos_token_id": tokenizer.bos_token_id,
      "eos_token_id": tokenizer.eos_token_id,
      "pad_token_id": tokenizer.pad_token_id,
    }
    shape = LlamaConfig.from_arch({**ids, **settings.arch})
  definition = define(
    shape,
    dtype=compute_dtype(settings),
    param_dtype=settings.param_dtype,
    remat=settings.remat,
  )
  if settings.path:
    huggingface.check_params(settings.path, definition)
  return Source(definition, settings.path, seed)


def compute_dtype(settings: config.Model) -> str:
  """`model.dtype`, or what suits the devices: bfloat16, float32 on CPU."""
  if settings.dtype != "auto":
    return settings.dtype
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def eos_ids(source: Source, tokenizer: Any) -> Sequence[int]:
  """Ids at which sampling stops: the model's and the tokenizer's."""
  ids = set(source.definition.config.eos_ids())
  if tokenizer.eos_token_id is not None:
    ids.add(tokenizer.eos_token_id)
  return sorted(ids)


def folder_digest(folder: str) -> str:
  """A digest of a Hugging Face folder's weights and architecture."""
  digest = hashlib.blake2b(digest_size=16)
  files = sorted(pathlib.Path(folder).glob("*.safetensors"))
  for path in [pathlib.Path(folder) / "config.json", *files]:
    with path.open("rb") as file:
      while chunk := file.read(1 << 24):
        digest.update(chunk)
  return digest.hexdigest()
