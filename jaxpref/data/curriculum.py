"""Curricula: comparisons from easy to hard, by named criteria.

    score_gap  the nearer the scores of the two, the harder
    logp_gap   the less likely the better one is beside the worse to the
               reference before training, by their log-probs, the harder
    length     the longer the prompt with the longer response, the harder

or FILE.py:FUNCTION, a function of the examples, each with one comparison,
`(data: Prepared) -> array`, larger where harder.

In one stage, every epoch goes from easy to hard. In several, each stage is a
run of its own on a part of the comparisons: either each stage takes the next
harder of every prompt's (`per_prompt`; Curry-DPO, Pattnaik et al. 2024,
https://arxiv.org/abs/2403.07230), or all comparisons are ordered and cut into
parts of one size.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib

import numpy as np

from jaxpref import config
from jaxpref.data.cache import Prepared
from jaxpref.errors import UserError, nearest
from jaxpref.files import import_file

Criterion = Callable[[Prepared], np.ndarray]

# The log-probability of each response, in nats; there is none of images, nor
# by reward models.
LogProbs = Callable[[Prepared], np.ndarray]


def difficulty(
  data: Prepared, name: str, log_probs: LogProbs | None = None
) -> np.ndarray:
  """How hard the comparison of each example is; larger is harder.

  Args:
    data: with one comparison an example; see `Prepared.by_comparison`.
    name: see above.
    log_probs: for logp_gap.

  Raises UserError for a criterion that is not known, gives no number for each
  comparison, or tells none of them apart.
  """
  try:
    values = np.asarray(_find(name, log_probs)(data))
  except UserError:
    raise
  except Exception as error:  # whatever a user's function does
    if ":" not in name:
      raise
    raise UserError(
      f"config.data.curriculum.criterion={name} failed: {error}."
    ) from error
  if values.shape != (len(data),) or not np.isrealobj(values):
    raise UserError(
      f"config.data.curriculum.criterion={name} gave an array of shape "
      f"{values.shape} and {values.dtype}; it must give a number for each of "
      f"the {len(data)} comparisons."
    )
  bad = np.flatnonzero(~np.isfinite(values.astype(float)))
  if len(bad):
    raise UserError(
      f"config.data.curriculum.criterion={name} gives {len(bad)} of "
      f"{len(data)} comparisons no finite number, the first that of "
      f"{data.ids[bad[0]]}. Leave those rows out, or choose another criterion."
    )
  if len(np.unique(values)) == 1:
    raise UserError(
      f"config.data.curriculum.criterion={name} gives all comparisons the same "
      f"difficulty, {values[0]:g}. Choose a criterion that tells them apart"
      f" ({', '.join(CRITERIA)}, or FILE.py:FUNCTION)."
    )
  return values.astype(np.float64)


def split(
  hard: np.ndarray, groups: np.ndarray, stages: int, *, per_prompt: bool
) -> np.ndarray:
  """The stage of each comparison, from 0.

  Args:
    hard: see `difficulty`; those that are equal stay in their order.
    groups: a number for each comparison, equal where the prompt is the same.
    stages: how many; where a prompt has as many comparisons, each stage gets
      one of them.
    per_prompt: cut the comparisons of each prompt; else all of them, the last
      stage with what is left over.

  >>> split(np.array([3, 1, 2, 9]), np.array([0, 0, 0, 1]), 3, per_prompt=True)
  array([2, 0, 1, 0])
  """
  if not per_prompt:
    each = max(1, len(hard) // stages)
    return np.minimum(_ranks(hard) // each, stages - 1)
  order = np.lexsort((np.arange(len(hard)), hard, groups))
  _, first, counts = np.unique(
    groups[order], return_index=True, return_counts=True
  )
  within = np.arange(len(hard)) - np.repeat(first, counts)
  found = np.empty(len(hard), np.int64)
  found[order] = within * stages // np.repeat(counts, counts)
  return found


def take_stage(
  data: Prepared,
  settings: config.Curriculum,
  log_probs: LogProbs | None = None,
) -> tuple[Prepared, str]:
  """The examples of `settings.stage`, and a line that says what they are.

  Raises UserError where it has none.
  """
  hard = difficulty(data, settings.criterion, log_probs)
  _, prompts = np.unique(data.ids, return_inverse=True)
  stages = split(hard, prompts, settings.stages, per_prompt=settings.per_prompt)
  here = np.flatnonzero(stages == settings.stage)
  if not len(here):
    raise UserError(
      f"Stage {settings.stage} of the curriculum has no comparison: no prompt "
      f"has enough for {settings.stages} stages. Lower "
      "config.data.curriculum.stages, set per_prompt=False, or have more "
      "comparisons made by config.pair.rule."
    )
  return data.select(here), (
    f"Stage {settings.stage} of {settings.stages}: {len(here):,} of "
    f"{len(data):,} comparisons, {settings.criterion} from "
    f"{hard[here].min():g} to {hard[here].max():g} (larger is harder)."
  )


def stage_settings(settings: config.Config, stage: int) -> config.Config:
  """The settings of one stage alone."""
  curriculum = dataclasses.replace(settings.data.curriculum, stage=stage)
  data = dataclasses.replace(settings.data, curriculum=curriculum)
  return dataclasses.replace(settings, data=data)


def go_on_from(settings: config.Config, export: pathlib.Path) -> config.Config:
  """The settings with the weights that a stage has trained.

  The next one's reference is the same, unless `refresh` is off: then it is
  what it was in the first. So is the model whose log-probs cut the stages: by
  another's, a comparison could be in two of them or in none.
  """
  old, reference = settings.model, settings.reference
  curriculum = settings.data.curriculum
  if curriculum.criterion == "logp_gap" and not curriculum.model:
    whose = reference.path or old.path
    curriculum = dataclasses.replace(curriculum, model=whose)
  model = dataclasses.replace(
    old,
    path=str(export),
    arch={},
    tokenizer=old.tokenizer or old.path,
  )
  kept = "" if curriculum.refresh else reference.path or old.path
  return dataclasses.replace(
    settings,
    model=model,
    reference=dataclasses.replace(reference, path=kept),
    data=dataclasses.replace(settings.data, curriculum=curriculum),
  )


def _ranks(values: np.ndarray) -> np.ndarray:
  ranks = np.empty(len(values), np.int64)
  ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
  return ranks


def _find(name: str, log_probs: LogProbs | None) -> Criterion:
  path, _, function = name.rpartition(":")
  if name == "logp_gap":
    return functools.partial(_logp_gap, log_probs)
  if not path:
    if name not in CRITERIA:
      raise UserError(
        f"config.data.curriculum.criterion is {name!r}. "
        f"{nearest(name, CRITERIA)} Or name a function, as FILE.py:FUNCTION."
      )
    return _OF_DATA[name]
  told = f"config.data.curriculum.criterion={name}"
  return getattr(import_file(path, told, function), function)


def _score_gap(data: Prepared) -> np.ndarray:
  return data.score[data.worse] - data.score[data.better]


def _length(data: Prepared) -> np.ndarray:
  longer = np.maximum.reduceat(data.response_lengths, data.first_response[:-1])
  return data.prompt_lengths + longer


def _logp_gap(log_probs: LogProbs | None, data: Prepared) -> np.ndarray:
  if log_probs is None:
    raise UserError(
      "config.data.curriculum.criterion is 'logp_gap', and only a language "
      "model gives log-probabilities of texts. Choose score_gap or length."
    )
  found = log_probs(data)
  return found[data.worse] - found[data.better]


_OF_DATA: dict[str, Criterion] = {"score_gap": _score_gap, "length": _length}
CRITERIA = ("score_gap", "logp_gap", "length")
