"""The order of start-up, written once."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from jaxpref import config, sharding
from jaxpref.data import tokenizer as tokenizers
from jaxpref.data.prepared import Prepared, prepare, split_holdout
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.checkpoint import Checkpoints
from jaxpref.fit.evaluate import held_out
from jaxpref.fit.interrupt import Interrupt
from jaxpref.fit.loop import fit
from jaxpref.fit.metrics import RunLog
from jaxpref.fit.objectives import (
  compares,
  find_loss,
  needs_reference,
  text_objective,
)
from jaxpref.fit.optimizer import make_optimizer, make_schedule
from jaxpref.fit.preview import Preview
from jaxpref.fit.reference import reference_logps
from jaxpref.fit.step import (
  TrainState,
  init_state,
  make_evaluate,
  make_step,
  state_shardings,
)
from jaxpref.models import huggingface
from jaxpref.models.source import (
  Source,
  compute_dtype,
  eos_ids,
  open_source,
)
from jaxpref.report import write_report
from jaxpref.summary import before_and_after
from jaxpref.types import Params, TextBatch

# A rerun may change these; any other change would make it another run.
_FREE = (
  "train.steps", "train.log_every", "train.eval_every",
  "train.checkpoint_every", "data.epochs", "data.rows_per_device", "mesh.",
  "sample.", "score.", "stages",
)  # fmt: skip


def run(settings: config.Config, workdir: pathlib.Path) -> bool:
  """Runs the stages of a config in a run folder; a rerun resumes.

  Returns: whether it came to the end; False after SIGTERM.

  Raises UserError for what the user can mend; nothing is half-written then.
  """
  _check_same_run(settings, workdir)
  _check_complete(settings)
  reference = _reference_mode(settings)
  mesh = sharding.make_mesh(**dataclasses.asdict(settings.mesh))
  folder = settings.model.tokenizer or settings.model.path
  tokenizer = tokenizers.load(folder)
  train, test = _prepare(settings, folder)
  if "fit" not in settings.stages:
    return True

  source = open_source(
    settings.model, seed=settings.train.seed, tokenizer=tokenizer
  )
  _check_vocabulary(source, train, test)
  definition = source.definition
  steps, test_steps = _make_steps(settings, train, test, mesh)
  stops_at = eos_ids(source, tokenizer)
  preview = Preview(settings.sample, settings.score, tokenizer, stops_at, test)
  schedule = make_schedule(settings.optimizer, len(steps))
  tx = make_optimizer(settings.optimizer, schedule)
  places = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  where = state_shardings(
    mesh, tx, {"policy": definition.shapes}, {"policy": places}
  )
  objective = text_objective(
    definition, settings.loss, head_block=settings.model.head_block
  )
  put = functools.partial(_put, mesh)

  with jax.set_mesh(mesh):
    frozen = _open_reference(
      reference, settings, source, places, steps, test_steps, put
    )
    step = make_step(objective, tx, schedule, where)
    evaluate = (
      held_out(make_evaluate(objective), frozen, test_steps, put)
      if test_steps
      else lambda state: {}
    )

    def judge(state: TrainState, number: int) -> dict[str, float]:
      values = evaluate(state)
      if number in (0, len(steps)):
        policy = state.params["policy"]
        values |= preview.write(workdir, number, definition, policy)
      return values

    _write_inputs(settings, workdir, train, test)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, start = _restore_or_begin(
      checkpoints, source, tx, where, settings.train.seed
    )
    log = RunLog(workdir, start=start, stop=len(steps))
    if start == 0 and (before := judge(state, 0)):
      log.write(0, before)
    with Interrupt() as interrupt:
      state, reached = fit(
        step,
        state,
        frozen,
        steps,
        start=start,
        stop=len(steps),
        put=put,
        settings=settings.train,
        log=log,
        checkpoints=checkpoints,
        judge=judge,
        interrupted=interrupt.requested,
      )
    log.close()
    checkpoints.close()
    if reached < len(steps):
      say(f"Stopped by SIGTERM after step {reached}; a rerun goes on there.")
      return False
    huggingface.save_pretrained(
      workdir / "export",
      definition,
      state.params["policy"],
      tokenizer_folder=folder,
    )
  if jax.process_index() == 0:
    page = write_report(workdir)
    say(f"{before_and_after(workdir)}\nModel: {workdir / 'export'}")
    say(f"Report: {page}")
  return True


def say(text: str) -> None:
  """Prints once, not once a process."""
  if jax.process_index() == 0:
    print(text, flush=True)


def _check_same_run(settings: config.Config, workdir: pathlib.Path) -> None:
  """Refuses to resume a run under settings that would make it another."""
  path = workdir / "config.json"
  if not path.exists():
    return
  old = _flat(json.loads(path.read_text(encoding="utf-8")))
  new = _flat(config.to_dict(settings))
  changed = [
    f"config.{key} was {old.get(key)!r} and is {new.get(key)!r}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key) and not key.startswith(_FREE)
  ]
  if changed:
    raise UserError(
      f"{workdir} holds a run with other settings: {'; '.join(changed)}. "
      "Give another --workdir, or the old settings to go on with that run."
    )


def _check_complete(settings: config.Config) -> None:
  if not (settings.model.path or settings.model.tokenizer):
    raise UserError(
      "config.model.path is empty. Give a Hugging Face folder with "
      "config.json, safetensors and a tokenizer; or, for random weights, "
      "config.model.arch and a folder with a tokenizer in "
      "config.model.tokenizer."
    )
  if not settings.data.path:
    raise UserError(
      "config.data.path is empty. Give a .jsonl, .jsonl.gz or .parquet file "
      "of comparisons, or a folder of such files."
    )


def _reference_mode(settings: config.Config) -> str:
  """What `reference.mode` comes to for this loss.

  'auto' caches where the run sees every example at least once, and else keeps
  a live copy, which is then the cheaper.
  """
  mode, needed = (
    settings.reference.mode,
    needs_reference(find_loss(settings.loss)),
  )
  if not needed:
    return "none"
  if mode == "none":
    raise UserError(
      f"config.reference.mode is 'none', and the loss {settings.loss.name!r} "
      "compares with a reference. Set it to auto, live or cached."
    )
  return mode


def _prepare(
  settings: config.Config, folder: str
) -> tuple[Prepared, Prepared | None]:
  data = settings.data
  if data.eval_path and data.eval_holdout:
    raise UserError(
      "config.data.eval_path and config.data.eval_holdout are both set; use "
      "one of them."
    )
  train = prepare(data, data.path, folder)
  say(train.summary())
  if data.eval_holdout:
    return split_holdout(train, data.eval_holdout, data.seed)
  if data.eval_path:
    test = prepare(data, data.eval_path, folder)
    say(test.summary())
    return train, test
  return train, None


def _check_vocabulary(source: Source, *parts: Prepared | None) -> None:
  size = source.definition.config.vocab_size
  largest = max(part.max_token for part in parts if part)
  if largest >= size:
    raise UserError(
      f"The tokenizer gives token {largest}, and the model's vocabulary has "
      f"{size} entries. Set config.model.tokenizer to the model's own."
    )


def _make_steps(
  settings: config.Config,
  train: Prepared,
  test: Prepared | None,
  mesh: jax.sharding.Mesh,
) -> tuple[Steps, Steps | None]:
  data = settings.data
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  make = functools.partial(
    Steps,
    batch_size=data.batch_size,
    rows=data.rows_per_device * devices,
    row_length=data.row_length,
    share_prompts=data.share_prompts,
    compare=compares(find_loss(settings.loss)),
  )
  epoch = -(-len(train.prompt_lengths) // data.batch_size)
  num_steps = settings.train.steps or epoch * data.epochs
  steps = make(train, shuffle=data.shuffle, seed=data.seed, num_steps=num_steps)
  return steps, make(test) if test else None


def _open_reference(
  mode: str,
  settings: config.Config,
  policy: Source,
  places: Any,
  steps: Steps,
  test_steps: Steps | None,
  put: Callable[[Any], Any],
) -> Mapping[str, Params]:
  """Frozen parameters by role; cached log-probs are put into the steps."""
  if mode == "none":
    return {}
  path = settings.reference.path or policy.path
  source = dataclasses.replace(policy, path=path)
  if path != policy.path:
    _check_same_shape(source, huggingface.read_config(path))
    huggingface.check_params(path, source.definition)
  if mode == "auto":
    once = len(steps) >= steps.steps_per_epoch
    mode = "cached" if once else "live"
  if mode == "live":
    return {"reference": source.load(places)}
  load = functools.cache(functools.partial(source.load, places))
  for part in filter(None, (steps, test_steps)):
    part.ref_token_logp = reference_logps(
      part,
      source.definition,
      load,
      weights=source.identity,
      dtype=compute_dtype(settings.model),
      head_block=settings.model.head_block,
      put=put,
    )
  return {}


def _check_same_shape(source: Source, other: Any) -> None:
  if other != source.definition.config:
    raise UserError(
      f"config.reference.path {source.path} holds a model of another shape "
      "than the policy's. Give a folder with the same config.json."
    )


def _restore_or_begin(
  checkpoints: Checkpoints,
  source: Source,
  tx: Any,
  where: TrainState,
  seed: int,
) -> tuple[TrainState, int]:
  begin = functools.partial(init_state, tx=tx, seed=seed, shardings=where)
  shapes = jax.eval_shape(begin, {"policy": source.definition.shapes})
  like = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    where,
  )
  restored = checkpoints.restore_latest(like)
  if restored is not None:
    say(f"Resuming after step {restored[1]}.")
    return restored
  return begin({"policy": source.load(where.params["policy"])}), 0


def _write_inputs(
  settings: config.Config,
  workdir: pathlib.Path,
  train: Prepared,
  test: Prepared | None,
) -> None:
  """config.json, data.json and rejected.jsonl, each whole or not at all."""
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  stats: dict[str, Any] = {"train": train.stats}
  if test:
    # Held-out examples are part of the same preparation.
    same = settings.data.eval_holdout
    stats["eval"] = {"examples": len(test)} if same else test.stats
  for name, content in (
    ("config.json", config.to_dict(settings)),
    ("data.json", stats),
  ):
    temporary = workdir / f"{name}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, workdir / name)
  temporary = workdir / "rejected.jsonl.tmp"
  shutil.copyfile(train.rejected_file, temporary)
  os.replace(temporary, workdir / "rejected.jsonl")


def _put(mesh: jax.sharding.Mesh, batch: TextBatch) -> TextBatch:
  """Moves the arrays of a step to the devices, rows spread over them."""
  rows = sharding.batch_sharding(mesh, axis=1)
  everywhere = sharding.replicated(mesh)
  whole = ("slots", "comparisons")

  def move(path: Any, x: np.ndarray) -> jax.Array:
    place = everywhere if path[0].name in whole else rows
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

  with jax.transfer_guard("allow"):  # this is the transfer that is meant
    return jax.tree.map_with_path(move, batch)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix.rstrip("."): tree}
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}{key}.")
  return flat
