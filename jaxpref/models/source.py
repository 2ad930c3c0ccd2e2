"""Where a run's weights come from: a Hugging Face folder, or a seed."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.models import adapter, huggingface, prompt_file
from jaxpref.models.build import Definition, define, init_params
from jaxpref.models.heads import reward_axes
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.lora import overlay
from jaxpref.models.prompt import draw_rows
from jaxpref.models.sdxl import lora_file
from jaxpref.types import Params


@dataclasses.dataclass(frozen=True)
class Source:
  """A model and how to get its weights; nothing is loaded yet."""

  definition: Definition
  path: str  # '' = random weights
  seed: int

  @property
  def base(self) -> "Source | None":
    """The model that an adapter is laid over; None without an adapter."""
    if self.definition.base is None:
      return None
    return dataclasses.replace(self, definition=self.definition.base)

  @property
  def identity(self) -> str:
    """A digest of what decides the model that training begins with."""
    if self.path:
      digest = folder_digest(self.path, "config.json")
    else:
      digest = _digest(repr(self.definition.config), self.seed)
    if given := self.definition.lora.path or self.definition.prompt.path:
      return _digest(digest, folder_digest(given, adapter.CONFIG))
    return digest  # a new adapter changes nothing yet

  def load(self, shardings: Any) -> Params:
    """What trains, each tensor straight into its shards."""
    definition, lora = self.definition, self.definition.lora
    if self.path and definition.base is None:
      return huggingface.load_params(self.path, definition, shardings)
    if definition.prompt.path:
      path = definition.prompt.path
      return prompt_file.load_prompt(path, definition, shardings)
    if self.path and definition.prompt.length:
      return self._first_prompt(shardings)
    params = init_params(definition, jax.random.key(self.seed), shardings)
    if self.path and definition.rewards:
      head = huggingface.load_head(self.path, definition, shardings)
      params = overlay(params, head)
    if lora.path:
      given = adapter.load_adapter(lora.path, definition, shardings)
      params = overlay(params, given)
    return params

  def _first_prompt(self, shardings: Any) -> Params:
    """As `init_params` makes it, of the embeddings in the folder."""
    definition = self.definition
    rows = draw_rows(
      jax.random.key(self.seed),
      definition.prompt.length,
      definition.config.vocab_size,
    )
    array = huggingface.load_embeddings(self.path, definition, np.asarray(rows))
    place = shardings and shardings["prompt"]["embedding"]
    return {"prompt": {"embedding": jax.device_put(array, place)}}


def open_source(
  settings: config.Model,
  *,
  seed: int,
  tokenizer: Any,
  rewards: bool = False,
) -> Source:
  """The model of `config.model`, as `resolve_model` leaves it.

  Args:
    settings: which weights, in which form.
    seed: of random weights.
    tokenizer: gives random weights their vocabulary.
    rewards: whether it has a reward head in place of its own.

  Raises UserError for a folder or an architecture that cannot be used.
  """
  definition = read_definition(settings, tokenizer, rewards=rewards)
  if settings.path:
    huggingface.check_params(settings.path, definition.base or definition)
  if settings.lora.path:
    adapter.check_adapter(settings.lora.path, definition)
  if settings.prompt.path:
    prompt_file.check_prompt(settings.prompt.path, definition)
  if settings.adapter_path:
    _check_same_base(settings)
  return Source(definition, settings.path, seed)


def read_definition(
  settings: config.Model, tokenizer: Any, *, rewards: bool = False
) -> Definition:
  """The model's structure, for which no weights need to be there.

  Args:
    settings: `config.model`, as `resolve_model` leaves it.
    tokenizer: what random weights take their vocabulary from; None where
      `arch` states it.
    rewards: whether it has a reward head in place of its own.

  Raises UserError for a shape that cannot be had.
  """
  if settings.path and settings.arch:
    raise UserError(
      "config.model.path and config.model.arch are both set. Keep `path` to "
      "go on from its weights, or `arch` to start from random ones."
    )
  if rewards and settings.prompt.length:
    raise UserError(
      "config.model.prompt trains virtual tokens, and the loss trains a reward "
      "model, whose head their files have no place for. Leave it out, or train "
      "an adapter by config.model.lora.rank."
    )
  if settings.param_dtype != "float32" and not settings.adapts:
    raise UserError(
      f"config.model.param_dtype is {settings.param_dtype!r}, and all weights "
      "train: small updates would be lost to rounding. Set it to float32 (the "
      "compute is config.model.dtype's), or train an adapter by "
      "config.model.lora.rank."
    )
  if settings.path:
    shape = huggingface.read_config(settings.path)
  else:
    ids = _ids(tokenizer) if tokenizer else {}
    if "preset" in settings.arch:  # which states the published size
      ids.pop("vocab_size", None)
    shape = LlamaConfig.from_arch({**ids, **settings.arch})
  return define(
    shape,
    dtype=settings.dtype,
    param_dtype=settings.param_dtype,
    remat=settings.remat,
    attention=settings.attention,
    lora=settings.lora,
    prompt=settings.prompt,
    rewards=reward_names(settings) if rewards else (),
  )


def resolve_model(settings: config.Model, platform: str) -> config.Model:
  """With the settings of an adapter's folder, and a dtype that suits.

  `platform` is the devices'; 'auto' is float32 on CPU, bfloat16 elsewhere.
  """
  suited = "float32" if platform == "cpu" else "bfloat16"
  dtype = suited if settings.dtype == "auto" else settings.dtype
  images = settings.family == "sdxl"
  resolve = lora_file.resolve if images else adapter.with_adapter
  lora = resolve(settings.lora)
  prompt = prompt_file.with_prompt(settings.prompt)
  return dataclasses.replace(settings, dtype=dtype, lora=lora, prompt=prompt)


def reward_names(settings: config.Model) -> tuple[str, ...]:
  """The axes of a reward model: the config's, the folder's, or one.

  Raises UserError where the folder has a head with others.
  """
  path = pathlib.Path(settings.path) / "config.json"
  given = huggingface.read_json(path) if settings.path else {}
  return reward_axes(given, settings.reward_axes, str(path))


def _ids(tokenizer: Any) -> dict[str, Any]:
  """What a tokenizer says of the model."""
  return {
    "vocab_size": len(tokenizer),
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": tokenizer.eos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
  }


def eos_ids(source: Source, tokenizer: Any) -> Sequence[int]:
  """Ids at which sampling stops: the model's and the tokenizer's."""
  ids = set(source.definition.config.eos_ids())
  if tokenizer.eos_token_id is not None:
    ids.add(tokenizer.eos_token_id)
  return sorted(ids)


def folder_digest(folder: str, *settings: str) -> str:
  """A digest of the weights in a folder and of its files of settings."""
  digest = hashlib.blake2b(digest_size=16)
  files = sorted(pathlib.Path(folder).glob("*.safetensors"))
  for path in [*(pathlib.Path(folder) / name for name in settings), *files]:
    with path.open("rb") as file:
      while chunk := file.read(1 << 24):
        digest.update(chunk)
  return digest.hexdigest()


def _digest(*parts: Any) -> str:
  text = json.dumps(parts).encode()
  return hashlib.blake2b(text, digest_size=16).hexdigest()


def _check_same_base(settings: config.Model) -> None:
  # A name on a hub, or a folder that is not here, cannot be compared.
  base = adapter.named_base(settings.adapter_path)
  key = "lora" if settings.lora.path else "prompt"
  if not base or not any(pathlib.Path(base).glob("*.safetensors")):
    return
  if settings.path and os.path.samefile(base, settings.path):
    return
  if not settings.path or folder_digest(base) != folder_digest(settings.path):
    now = settings.path and f"{settings.path} holds others"
    raise UserError(
      f"config.model.{key}.path: the adapter in {settings.adapter_path} "
      f"belongs to the weights in {base}, and config.model.path "
      f"{now or 'is empty'}. Set config.model.path to that folder; to lay the "
      "adapter over other weights "
      f"all the same, set base_model_name_or_path in its {adapter.CONFIG} to "
      "null."
    )
