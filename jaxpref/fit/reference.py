"""The reference: cached log-probs, a live copy, or the base of an adapter."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
from jaxtyping import Float32
import numpy as np

from jaxpref import config, sharding
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.cached_reference import CachedReference
from jaxpref.fit.loss import find_loss, needs_reference
from jaxpref.models import huggingface
from jaxpref.models.build import Definition
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.lora import overlay
from jaxpref.models.source import Source
from jaxpref.types import Params

# A model and its copy may differ in these: no log-prob depends on them.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")


def check_mode(settings: config.Config) -> None:
  """Raises UserError for a reference that cannot be or is not enough."""
  if settings.reference.mode == "base":
    _check_base(settings)
  needed = needs_reference(find_loss(settings.loss))
  if needed and settings.reference.mode == "none":
    raise UserError(
      f"config.reference.mode is 'none', and the loss {settings.loss.name!r} "
      "compares with a reference. Set it to auto, live, cached or base."
    )
  mode, fill = settings.reference.mode, settings.reference.fill
  if fill == "during" and mode not in ("auto", "cached"):
    raise UserError(
      f"config.reference.fill is 'during', when log-probs are cached, and "
      f"config.reference.mode is {mode!r}, which caches none. Set the mode to "
      "cached, or fill to before."
    )


def with_mode(settings: config.Config, sees_all: bool) -> config.Config:
  """The config with what `reference.mode` comes to.

  'auto' caches where the run sees every example at least once (`sees_all`), or
  where that takes no pass of its own. Else to compute it as it goes is the
  cheaper: by the base under a new adapter, which takes no memory, or by a live
  copy.
  """
  mode, model = settings.reference.mode, settings.model
  begins_as_base = model.adapts and not model.adapter_path
  if not needs_reference(find_loss(settings.loss)):
    mode = "none"
  elif mode == "auto" and (sees_all or settings.reference.fill == "during"):
    mode = "cached"
  elif mode == "auto":
    shares = begins_as_base and not settings.reference.path
    mode = "base" if shares else "live"
  reference = dataclasses.replace(settings.reference, mode=mode)
  return dataclasses.replace(settings, reference=reference)


def open_reference(
  settings: config.Config,
  policy: Source,
  mesh: jax.sharding.Mesh,
  steps: Steps,
  test_steps: Steps | None,
  put: Callable[[Any], Any],
) -> tuple[Mapping[str, Params], Callable[[], None]]:
  """Frozen parameters by role; cached log-probs are put into the steps.

  Under an adapter `base` is among them, and it is held once: the reference
  shares it, whatever the mode, unless it is another model.

  Returns: the parameters, and what writes the log-probs that training computed
  (`reference.fill=during`) and are not on disk yet.
  """
  nothing = lambda: None
  base = policy.base
  frozen = {"base": _load(base, mesh)} if base else {}
  mode, path = settings.reference.mode, settings.reference.path
  if mode in ("none", "base"):
    return frozen, nothing
  source = base or policy
  if path and path != policy.path:
    source = dataclasses.replace(source, path=path)
    _check_same_shape(source, huggingface.read_config(path))
    huggingface.check_params(path, source.definition)
  elif settings.model.adapter_path and not path:
    source = policy  # the base with the adapter as it was
  if mode == "live" and source is base:
    return frozen, nothing
  if mode == "live":
    role = "reference_factors" if source.base else "reference"
    return {**frozen, role: _load(source, mesh)}, nothing

  @functools.cache
  def load() -> Params:
    if source is base:
      return frozen["base"]
    own = _load(source, mesh)
    return overlay(frozen["base"], own) if source.base else own

  def cached(part: Steps) -> CachedReference:
    return CachedReference(
      part,
      source.definition,
      load,
      weights=source.identity,
      dtype=settings.model.dtype,
      head_block=settings.model.head_block,
      put=put,
    )

  if test_steps:
    test_steps.ref_token_logp = cached(test_steps).fill()
  values = cached(steps)
  if settings.reference.fill == "before" or values.is_whole:
    steps.ref_token_logp = values.fill()
    return frozen, nothing
  steps.finish = values.complete
  return frozen, values.write


def response_logp(
  settings: config.Config,
  policy: Source,
  mesh: jax.sharding.Mesh,
  steps: Steps,
  put: Callable[[Any], Any],
) -> Float32[np.ndarray, " m"]:
  """The log-probability of each response of the data, in nats.

  By the model of `data.curriculum.model`, else by the run's reference, which
  finds them in its cache then. They are those of the cache in a first run too,
  and the first process's on all: a response that is in two batches is computed
  twice, and rounds in two ways.
  """
  path = settings.data.curriculum.model or settings.reference.path
  reference = config.Reference(mode="cached", path=path)
  cached = dataclasses.replace(settings, reference=reference)
  with jax.set_mesh(mesh):
    for _ in ("computed", "read"):
      open_reference(cached, policy, mesh, steps, None, put)
  assert steps.ref_token_logp is not None
  found = np.add.reduceat(steps.ref_token_logp, steps.data.first_token[:-1])
  if jax.process_count() > 1:
    found = np.asarray(multihost_utils.broadcast_one_to_all(found))
  return found


def frozen_roles(
  settings: config.Config, definition: Definition
) -> dict[str, Definition]:
  """What `open_reference` will hold: the model or factors of each role.

  Args:
    settings: with the mode that `with_mode` found.
    definition: of the policy.
  """
  base, path = definition.base, settings.reference.path
  found = {"base": base} if base else {}
  if settings.reference.mode != "live":
    return found
  other = path and path != settings.model.path
  if base and not other and (path or not settings.model.adapter_path):
    return found  # the base is the reference
  if base and not other:
    return {**found, "reference_factors": definition}
  return {**found, "reference": base or definition}


def _check_base(settings: config.Config) -> None:
  if not settings.model.adapts:
    raise UserError(
      "config.reference.mode is 'base', the model below an adapter, and there "
      "is no adapter. Set config.model.lora.rank (or model.prompt.length), or "
      "the mode to auto, live or cached."
    )
  if settings.reference.path:
    raise UserError(
      "config.reference.mode is 'base', the model below the adapter, and "
      f"config.reference.path names {settings.reference.path}. Set the mode to "
      "live or cached, or the path to ''."
    )


def _load(source: Source, mesh: jax.sharding.Mesh) -> Params:
  shapes, axes = source.definition.shapes, source.definition.axes
  return source.load(sharding.param_shardings(mesh, shapes, axes))


def _check_same_shape(source: Source, other: LlamaConfig) -> None:
  same = dataclasses.replace(
    other, **{name: getattr(source.definition.config, name) for name in _IDS}
  )
  if same != source.definition.config:
    raise UserError(
      f"The reference {source.path} is a model of another shape than the "
      "policy. Give a folder with the same config.json."
    )
