"""The order of start-up, written once."""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from jaxpref import config, sharding
from jaxpref.data import tokenizer as tokenizers
from jaxpref.data.curriculum import go_on_from, stage_settings
from jaxpref.data.mixture import make_order
from jaxpref.data.prepared import Prepared, prepare
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.checkpoint import Checkpoints
from jaxpref.fit.choose import find_objective
from jaxpref.fit.evaluate import held_out
from jaxpref.fit.examples import read_examples
from jaxpref.fit.flops import Speed, step_flops
from jaxpref.fit.folder import (
  check_folder,
  check_same_base,
  check_same_data,
  write_inputs,
)
from jaxpref.fit.interrupt import Interrupt
from jaxpref.fit.loop import fit
from jaxpref.fit.loss import (
  check_suits,
  find_loss,
  rated_axes,
  trains_rewards,
)
from jaxpref.fit.metrics import RunLog
from jaxpref.fit.optimizer import averaged, make_optimizer, make_schedule
from jaxpref.fit.preview import Preview
from jaxpref.fit.put import put_batch
from jaxpref.fit.reference import check_mode, open_reference, with_mode
from jaxpref.fit.step import (
  TrainState,
  init_state,
  make_evaluate,
  make_step,
  state_shapes,
  state_shardings,
)
from jaxpref.fit.task import Task
from jaxpref.fit.usable import kept_responses
from jaxpref.hosts import say
from jaxpref.image_task import image_task
from jaxpref.models import huggingface
from jaxpref.models.adapter import save_adapter
from jaxpref.models.heads import padding
from jaxpref.models.llama.flops import Tree
from jaxpref.models.lora import overlay
from jaxpref.models.prompt_file import save_prompt
from jaxpref.models.source import (
  Source,
  eos_ids,
  open_source,
  resolve_model,
  reward_names,
)
from jaxpref.ops.attention import resolve_backend
from jaxpref.report import write_report
from jaxpref.sample.image_stage import sample_images
from jaxpref.summary import before_and_after
from jaxpref.types import Params


def run(settings: config.Config, workdir: pathlib.Path) -> bool:
  """Runs the stages of a config in a run folder; a rerun resumes.

  Returns: whether it came to the end; False after SIGTERM.

  Raises UserError for what the user can mend; nothing is half-written then.
  """
  curriculum = settings.data.curriculum
  if curriculum.stages > 1 and curriculum.stage < 0:
    return _run_curriculum(settings, workdir)
  mesh = sharding.make_mesh(**dataclasses.asdict(settings.mesh))
  settings = _resolve(settings, mesh)
  workdir = workdir.expanduser().absolute()
  check_folder(settings, workdir)
  _check_stages(settings)
  if settings.stages == ("sample",):
    sheet = sample_images(settings, workdir, mesh)
    say(f"Images: {sheet.parent}\nContact sheet: {sheet}")
    return True
  check_suits(settings)
  check_mode(settings)
  images = settings.model.family == "sdxl"
  task = (image_task if images else _text_task)(settings, workdir, mesh)
  return True if task is None else _fit(task, workdir, mesh)


def _fit(task: Task, workdir: pathlib.Path, mesh: jax.sharding.Mesh) -> bool:
  settings, definition, steps = task.settings, task.definition, task.steps
  check_same_data(workdir, task.train, task.test)
  check_same_base(workdir, task.base)
  schedule = make_schedule(settings.optimizer, len(steps))
  tx = make_optimizer(settings.optimizer, schedule)
  places = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  where = state_shardings(
    mesh, tx, {"policy": definition.shapes}, {"policy": places}
  )
  speed = Speed(task.flops, mesh.size, mesh.devices.flat[0].device_kind)

  with jax.set_mesh(mesh):
    frozen, write_reference = task.open_reference()
    step = make_step(task.objective(training=True), tx, schedule, where)
    evaluate = (
      held_out(
        make_evaluate(task.objective()), frozen, task.test_steps, task.put
      )
      if task.test_steps
      else lambda state: {}
    )

    def result(state: TrainState) -> TrainState:
      params = averaged(state.opt_state, state.params)
      return dataclasses.replace(state, params=params)

    def whole(state: TrainState) -> Params:
      return overlay(frozen.get("base", {}), state.params["policy"])

    def judge(state: TrainState, number: int) -> dict[str, float]:
      values = evaluate(result(state))
      if number in (0, len(steps)):
        values |= task.preview(number, whole(result(state)))
      return values

    checkpoints = Checkpoints(workdir / "checkpoints")
    state, start = _restore_or_begin(
      checkpoints, task, tx, where, settings.train.seed
    )
    if start > len(steps):
      raise UserError(
        f"{workdir} holds a run of {start} steps, and these settings stop "
        f"after {len(steps)}. Raise config.train.steps (or data.epochs), or "
        "give another --workdir."
      )
    write_inputs(settings, workdir, task.train, task.test, task.base)
    with (
      contextlib.closing(checkpoints),
      contextlib.closing(RunLog(workdir, start=start, stop=len(steps))) as log,
      Interrupt() as interrupt,
    ):
      if start == 0 and (before := judge(state, 0)):
        log.write(0, before)
      state, reached = fit(
        step,
        state,
        frozen,
        steps,
        start=start,
        stop=len(steps),
        put=task.put,
        settings=settings.train,
        log=log,
        checkpoints=checkpoints,
        speed=speed,
        judge=judge,
        interrupted=interrupt.requested,
        before_save=write_reference,
      )
    if reached < len(steps):
      say(f"Stopped by SIGTERM after step {reached}; a rerun goes on there.")
      return False
    state = result(state)
    made = task.export(state.params["policy"], whole(state))
  if jax.process_index() == 0:
    page = write_report(workdir)
    say(f"{before_and_after(workdir)}\nModel: {made}")
    say(f"Report: {page}")
  return True


def _text_task(
  settings: config.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Task | None:
  """Of a language or reward model; None where there is nothing to train."""
  _check_complete(settings)
  rewards = trains_rewards(settings)
  resolve_backend(settings.model.attention, sharding.platform(mesh))
  folder = settings.model.tokenizer or settings.model.path
  tokenizer = tokenizers.load(folder)
  axes = (
    rated_axes(find_loss(settings.loss), reward_names(settings.model))
    if rewards
    else ()
  )
  train, test = read_examples(
    settings, lambda data, path: prepare(data, path, folder), axes
  )
  if "fit" not in settings.stages:
    return None
  check_same_data(workdir, train, test)
  source = open_source(
    settings.model,
    seed=settings.train.seed,
    tokenizer=tokenizer,
    rewards=rewards,
  )
  _check_suits(source, train, test)
  definition = source.definition
  steps, test_steps = _make_steps(settings, train, test, mesh)
  settings = with_mode(settings, steps.see_all)
  stops_at = eos_ids(source, tokenizer)
  samples = Preview(settings.sample, settings.score, tokenizer, stops_at, test)
  put = functools.partial(put_batch, mesh)

  def preview(number: int, params: Params) -> dict[str, float]:
    if rewards:  # those write no text
      return {}
    return samples.write(workdir, number, definition, params)

  def export(trained: Params, whole: Params) -> pathlib.Path:
    virtual = definition.prompt.length  # which no weights can hold
    if not virtual:
      huggingface.save_pretrained(
        workdir / "export",
        definition,
        whole,
        tokenizer_folder=folder,
        pad_token=padding(tokenizer, stops_at) if rewards else None,
      )
    if source.base:
      save = save_prompt if virtual else save_adapter
      save(workdir / "adapter", definition, trained, settings.model.path)
    return workdir / ("adapter" if virtual else "export")

  return Task(
    settings,
    definition,
    source.load,
    source.identity if source.base else "",
    train,
    test,
    steps,
    test_steps,
    put,
    functools.partial(find_objective, definition, settings),
    lambda: open_reference(settings, source, mesh, steps, test_steps, put),
    lambda number: step_flops(
      settings, definition, map(Tree._make, steps.lengths(number))
    ),
    preview,
    export,
  )


def _run_curriculum(settings: config.Config, workdir: pathlib.Path) -> bool:
  """Runs each stage in a folder of its own, from what the one before made."""
  workdir = workdir.expanduser().absolute()
  for stage in range(settings.data.curriculum.stages):
    folder = workdir / f"stage_{stage:03d}"
    say(f"{folder.name}:")
    if not run(stage_settings(settings, stage), folder):
      return False
    settings = go_on_from(settings, folder / "export")
  return True


def _check_stages(settings: config.Config) -> None:
  family, stages = settings.model.family, settings.stages
  alone = stages == ("sample",) and family == "sdxl"
  if "sample" in stages and not alone:
    raise UserError(
      f"config.model.family is {family!r} and config.stages is {list(stages)}: "
      "so far the stage 'sample' stands alone, and is for models of images "
      "('sdxl')."
    )


def _check_complete(settings: config.Config) -> None:
  if not (settings.model.path or settings.model.tokenizer):
    raise UserError(
      "config.model.path is empty. Give a Hugging Face folder with "
      "config.json, safetensors and a tokenizer; or, for random weights, "
      "config.model.arch and a folder with a tokenizer in "
      "config.model.tokenizer."
    )


def _resolve(settings: config.Config, mesh: jax.sharding.Mesh) -> config.Config:
  """What does not depend on this machine's folder and devices any more."""
  settings = config.with_absolute_paths(settings)
  model = resolve_model(settings.model, sharding.platform(mesh))
  return dataclasses.replace(settings, model=model)


def _check_suits(source: Source, *parts: Prepared | None) -> None:
  """Raises UserError where the model cannot take the tokens."""
  shape, virtual = source.definition.config, source.definition.prompt.length
  size = shape.vocab_size
  largest = max(part.max_token for part in parts if part)
  if largest >= size:
    raise UserError(
      f"The tokenizer gives token {largest}, and the model's vocabulary has "
      f"{size} entries. Set config.model.tokenizer to the model's own."
    )
  longest = virtual + max(part.max_length for part in parts if part)
  if (
    shape.rope_parameters.rope_type == "dynamic"
    and longest > shape.max_position_embeddings
  ):
    # It stretches by the longest sequence seen, which packing would change.
    raise UserError(
      f"The model's 'dynamic' RoPE changes beyond "
      f"{shape.max_position_embeddings} tokens, and the data have sequences of "
      f"{longest}. Set config.data.max_length to at most "
      f"{shape.max_position_embeddings - virtual}."
    )


def _make_steps(
  settings: config.Config,
  train: Prepared,
  test: Prepared | None,
  mesh: jax.sharding.Mesh,
) -> tuple[Steps, Steps | None]:
  data, loss = settings.data, find_loss(settings.loss)
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  make = functools.partial(
    Steps,
    batch_size=data.batch_size,
    rows=data.rows_per_device * devices,
    row_length=data.row_length,
    share_prompts=data.share_prompts,
    buckets=data.buckets,
    prefix=settings.model.prompt.length,
  )
  order, told = make_order(data, train)
  if told:
    say(told)
  epoch = -(-len(order) // data.batch_size)
  steps = make(
    train,
    kept=kept_responses(train, loss),
    order=order,
    num_steps=settings.train.steps or epoch * data.epochs,
  )
  _tell_of_empty_rows(steps)
  return steps, make(test, kept=kept_responses(test, loss)) if test else None


def _tell_of_empty_rows(steps: Steps) -> None:
  """Says so where a whole step has too few prompts for its rows."""
  packing, shape = steps.packing(0)
  pieces = [len(row) for micro in packing for row in micro]
  rows = shape.micro_batches * shape.rows
  empty = rows - np.count_nonzero(pieces)
  if empty and sum(pieces) < rows:
    enough = -(-rows * len(steps.examples(0)) // sum(pieces))
    say(
      f"Warning: {empty} of the {rows} rows of a step hold nothing, and are "
      f"computed all the same. A config.data.batch_size of {enough} fills "
      "them; fewer rows are had by a lower config.data.rows_per_device, or "
      "fewer devices in config.mesh.data and config.mesh.fsdp."
    )


def _restore_or_begin(
  checkpoints: Checkpoints,
  task: Task,
  tx: Any,
  where: TrainState,
  seed: int,
) -> tuple[TrainState, int]:
  begin = functools.partial(init_state, tx=tx, seed=seed, shardings=where)
  like = state_shapes({"policy": task.definition.shapes}, tx, where)
  restored = checkpoints.restore_latest(like)
  if restored is not None:
    say(f"Resuming after step {restored[1]}.")
    return restored
  return begin({"policy": task.load(where.params["policy"])}), 0
