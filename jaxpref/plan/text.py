"""The training step on text, before any data, weights or tokenizer are read."""

import dataclasses
from typing import Any

import jax

from jaxpref import config, sharding
from jaxpref.data import tokenizer as tokenizers
from jaxpref.data.batch import batch_shapes
from jaxpref.data.packing import Shape, round_up
from jaxpref.errors import UserError
from jaxpref.fit.choose import find_objective
from jaxpref.fit.flops import step_flops
from jaxpref.fit.loss import (
  compares,
  find_loss,
  needs_labels,
  needs_mismatched,
  rated_axes,
  trains_rewards,
)
from jaxpref.fit.optimizer import make_optimizer, make_schedule
from jaxpref.fit.put import batch_places
from jaxpref.fit.reference import check_mode, frozen_roles, with_mode
from jaxpref.fit.step import state_shapes, state_shardings
from jaxpref.models.build import Definition
from jaxpref.models.llama.flops import Tree
from jaxpref.models.source import read_definition, resolve_model
from jaxpref.ops.attention import resolve_backend
from jaxpref.plan.job import Job


def text_job(settings: config.Config, mesh: jax.sharding.Mesh) -> Job:
  """The step of a config on a mesh whose devices need not be there.

  Raises UserError where training with these settings would.
  """
  settings = config.with_absolute_paths(settings)
  model = resolve_model(settings.model, sharding.platform(mesh))
  settings = dataclasses.replace(settings, model=model)
  resolve_backend(model.attention, sharding.platform(mesh))
  check_mode(settings)
  # How many examples there are is not known; an epoch sees all of them.
  settings = with_mode(settings, not settings.train.steps)
  tokenizer = tokenizers.load(model.tokenizer) if model.tokenizer else None
  definition = read_definition(
    model, tokenizer, rewards=trains_rewards(settings)
  )
  schedule = make_schedule(settings.optimizer, settings.train.steps)
  tx = make_optimizer(settings.optimizer, schedule)
  places = _places(mesh, definition)
  shapes = {"policy": definition.shapes}
  where = state_shardings(mesh, tx, shapes, {"policy": places})
  shape = step_shape(settings, mesh)
  batch = batch_shapes(
    shape,
    cached=settings.reference.mode == "cached",
    axes=len(rated_axes(find_loss(settings.loss), definition.rewards)),
  )
  return Job(
    objective=find_objective(definition, settings, training=True),
    tx=tx,
    schedule=schedule,
    state=state_shapes(shapes, tx, where),
    frozen={
      role: sharding.placed(each.shapes, _places(mesh, each))
      for role, each in frozen_roles(settings, definition).items()
    },
    batch=sharding.placed(batch, batch_places(mesh, batch)),
    useful_flops=_useful(settings, definition),
    assumes=_assumes(settings, shape),
  )


def full_row(settings: config.Config) -> list[Tree]:
  """What a row holds: the longest examples, and a shorter one to fill it.

  Prompts are `data.max_prompt_length` long, or half of `data.max_length`, and
  responses have what is left of `data.max_length`. Those of one prompt share a
  row where they fit. Virtual tokens take places too, and are not told.

  Raises UserError where a prompt with one response does not fit.
  """
  data, virtual = settings.data, settings.model.prompt.length
  room = data.row_length - virtual  # of a row with one prompt
  if data.max_length > room:
    told = f" beside {virtual} virtual ones" if virtual else ""
    raise UserError(
      f"config.data.row_length is {data.row_length}, and a prompt with one "
      f"response may have {data.max_length} tokens{told}. Set it to at least "
      "that, or lower config.data.max_length."
    )
  prompt = data.max_prompt_length or data.max_length // 2
  prompt = max(1, min(prompt, data.max_length - 1))
  response = data.max_length - prompt
  fit = (room - prompt) // response if data.share_prompts else 1
  number = min(fit, responses_of_prompt(settings))
  size = prompt + number * response
  count, left = divmod(data.row_length, virtual + size)
  left = max(0, left - virtual)
  rest = Tree(left * prompt // size, (left * response // size,) * number)
  trees = [Tree(prompt, (response,) * number)] * count
  return [*trees, rest] if rest.prompt and rest.responses[0] else trees


def responses_of_prompt(settings: config.Config) -> int:
  """Two, to compare; the imitated one alone in supervised fine-tuning.

  A loss that takes the responses of another prompt has those besides.
  """
  loss = find_loss(settings.loss)
  own = 2 if compares(loss) or needs_labels(loss) else 1
  return 2 * own if needs_mismatched(loss) else own


def step_shape(settings: config.Config, mesh: jax.sharding.Mesh) -> Shape:
  """Sizes of a step of full rows, with enough of them for its prompts."""
  data, row = settings.data, full_row(settings)
  virtual = settings.model.prompt.length
  rows = data.rows_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
  lengths = [(tree.prompt, x) for tree in row for x in tree.responses]
  slots = rows * len(lengths)
  responses = responses_of_prompt(settings)
  return Shape(
    micro_batches=-(-data.batch_size * responses // slots),
    rows=rows,
    tokens=round_up(data.row_length, 8),
    sequences=tuple(round_up(virtual + sum(pair), 4) for pair in lengths),
    responses=round_up(sum(x for _, x in lengths), 8),
    slots=slots,
    comparisons=max(1, slots // responses),
    lists=max(1, slots // responses),  # of a pair each
    items=min(2, responses),
    prefix=virtual,
  )


def _useful(settings: config.Config, definition: Definition) -> float:
  """Of as many prompts as a step has, with the lengths of a full row's."""
  number = responses_of_prompt(settings)
  trees = [
    Tree(tree.prompt, tree.responses[:1] * number)
    for tree in full_row(settings)
  ]
  each = step_flops(settings, definition, trees) / len(trees)
  return settings.data.batch_size * each


def _assumes(settings: config.Config, shape: Shape) -> tuple[str, ...]:
  data, row = settings.data, full_row(settings)
  mode = settings.reference.mode
  told = " and ".join(
    f"{sum(tree == each for each in row)} of a prompt of {tree.prompt:,} "
    f"tokens with {len(tree.responses)} of {tree.responses[0]:,}"
    for tree in dict.fromkeys(row)
  )
  return (
    f"{shape.micro_batches} x {shape.rows} rows of {shape.tokens:,} tokens, "
    f"each full: {told}. {data.batch_size} prompts a step.",
    f"Reference: {mode}. Compute: {settings.model.dtype}.",
  )


def _places(mesh: jax.sharding.Mesh, definition: Definition) -> Any:
  return sharding.param_shardings(mesh, definition.shapes, definition.axes)
