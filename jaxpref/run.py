"""The order of start-up, written once."""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import jax

from jaxpref import config, sharding
from jaxpref.data.curriculum import go_on_from, stage_settings
from jaxpref.errors import UserError
from jaxpref.fit.checkpoint import Checkpoints
from jaxpref.fit.evaluate import held_out
from jaxpref.fit.flops import Speed
from jaxpref.fit.folder import (
  check_folder,
  check_same_base,
  check_same_data,
  write_inputs,
)
from jaxpref.fit.guard import Guard, make_guard
from jaxpref.fit.interrupt import Interrupt
from jaxpref.fit.loop import fit
from jaxpref.fit.loss import check_suits
from jaxpref.fit.metrics import RunLog
from jaxpref.fit.optimizer import averaged, make_optimizer, make_schedule
from jaxpref.fit.reference import check_mode
from jaxpref.fit.step import (
  TrainState,
  init_state,
  make_evaluate,
  make_step,
  state_shapes,
  state_shardings,
)
from jaxpref.fit.task import Task
from jaxpref.hosts import say, wait_for_all
from jaxpref.image_task import image_task
from jaxpref.models.lora import overlay
from jaxpref.models.source import resolve_model
from jaxpref.report import write_report
from jaxpref.sample.album import SAMPLES
from jaxpref.sample.image_stage import sample_images
from jaxpref.score.image_stage import needed_scorers, score_images
from jaxpref.summary import before_and_after
from jaxpref.text_task import text_task
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
  if {"sample", "score"} & {*settings.stages}:
    _make_images(settings, workdir, mesh)
    return True
  check_suits(settings)
  check_mode(settings)
  guard = make_guard(settings, say)
  images = settings.model.family == "sdxl"
  task = (image_task if images else text_task)(settings, workdir, mesh)
  return True if task is None else _fit(task, workdir, mesh, guard)


def _fit(
  task: Task, workdir: pathlib.Path, mesh: jax.sharding.Mesh, guard: Guard
) -> bool:
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
        guard=guard,
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


def _make_images(
  settings: config.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> None:
  """The stages `sample` and `score` of images."""
  if "score" in settings.stages:
    needed_scorers(settings.score)  # before hours of sampling
  if "sample" in settings.stages:
    sheet = sample_images(settings, workdir, mesh)
    say(f"Images: {sheet.parent}\nContact sheet: {sheet}")
    wait_for_all()  # the first one writes them
    made = str(workdir / "samples" / SAMPLES)
    data = dataclasses.replace(settings.data, path=made)
    settings = dataclasses.replace(settings, data=data)
  if "score" in settings.stages:
    say(f"Scored images: {score_images(settings, workdir)}")


def _check_stages(settings: config.Config) -> None:
  family, stages = settings.model.family, settings.stages
  own = stages in (("sample",), ("score",), ("sample", "score"))
  if {"sample", "score"} & {*stages} and not (own and family == "sdxl"):
    raise UserError(
      f"config.model.family is {family!r} and config.stages is {list(stages)}: "
      "so far the stages 'sample' and 'score' stand alone, or the one before "
      "the other, and are for models of images ('sdxl')."
    )
  if stages == ("sample", "score") and settings.data.path:
    raise UserError(
      f"config.data.path is {settings.data.path!r}, and the stages 'sample' "
      "and 'score' rate what they sample. Set it to '', or the stages to "
      "('score',)."
    )


def _resolve(settings: config.Config, mesh: jax.sharding.Mesh) -> config.Config:
  """What does not depend on this machine's folder and devices any more."""
  settings = config.with_absolute_paths(settings)
  model = resolve_model(settings.model, sharding.platform(mesh))
  return dataclasses.replace(settings, model=model)


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
