"""The run folder: whose run it is, and what the run was given."""

import json
import os
import pathlib
import shutil
from typing import Any

import jax

from jaxpref import config
from jaxpref.data.prepared import Prepared
from jaxpref.errors import UserError

# A rerun may change these; any other change would make it another run.
_FREE = (
  "train.steps", "train.log_every", "train.eval_every",
  "train.checkpoint_every", "data.epochs", "data.rows_per_device", "mesh.",
  "sample.", "score.", "stages",
)  # fmt: skip


def check_same_run(settings: config.Config, workdir: pathlib.Path) -> None:
  """Refuses to resume a run under settings that would make it another."""
  path = workdir / "config.json"
  if workdir.exists() and not workdir.is_dir():
    raise UserError(
      f"--workdir={workdir} is a file. Give the name of a folder, which is "
      "made where there is none."
    )
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


def write_inputs(
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


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix.rstrip("."): tree}
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}{key}.")
  return flat
