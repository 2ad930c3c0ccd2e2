"""Asynchronous Orbax checkpoints that survive kills and torn files."""

import json
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from jaxpref.errors import UserError

_KEPT = 3  # so that there is one before the last, if that is torn
_SIZES = "sizes.json"  # of each file with a part of the state, in bytes


class Checkpoints:
  """The checkpoints of a run, by step.

  A state is saved as a flat dict {path: array}, so no class of ours or of a
  library is in the files.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder.absolute()
    self._manager = self._open()

  def save(self, step: int, state: Any) -> None:
    """Begins to save; returns once the arrays may be changed again."""
    if step not in self._manager.all_steps():
      self._manager.save(step, args=ocp.args.StandardSave(_flat(state)))

  def restore_latest(self, like: Any) -> tuple[Any, int] | None:
    """The newest state that can be read, and its step; None without any.

    A checkpoint that cannot be read is moved aside, with a message, and the
    one before it is tried.

    Args:
      like: a state of ShapeDtypeStructs with shardings.

    Raises UserError if there are checkpoints and none can be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    failures = []
    for step in steps:
      try:
        _check_sizes(self._folder / str(step))
        flat = self._manager.restore(
          step, args=ocp.args.StandardRestore(_flat(like))
        )
      except Exception as error:  # Orbax and TensorStore raise many kinds
        reason = str(error).strip().split("\n")[0][:200]
        failures.append(f"step {step} ({type(error).__name__}: {reason})")
        continue
      if failures:
        self._set_aside([each for each in steps if each > step], failures)
      treedef = jax.tree.structure(like)
      return jax.tree.unflatten(treedef, [flat[k] for k in _flat(like)]), step
    if failures:
      raise UserError(
        f"No checkpoint in {self._folder} can be read: {'; '.join(failures)}. "
        "Remove the folder to start from the beginning, or give another "
        "--workdir."
      )
    return None

  def wait(self) -> None:
    """Returns when all that was begun is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then lets go of threads and files."""
    self._manager.close()

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      max_to_keep=_KEPT,
      enable_async_checkpointing=True,
      # Called when all files are written, and before they get their name.
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._note_sizes
      ),
    )
    return ocp.CheckpointManager(self._folder, options=options)

  def _note_sizes(self) -> None:
    # Orbax notices most torn files only while it reads dozens at once, and
    # then its threads print what each of them made of it.
    if jax.process_index() == 0:
      for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
        sizes = {
          file.relative_to(partial).as_posix(): file.stat().st_size
          for file in (partial / "default").rglob("*")
          if file.is_file()
        }
        (partial / _SIZES).write_text(json.dumps(sizes))

  def _set_aside(self, steps: list[int], failures: list[str]) -> None:
    logging.warning(
      "Passing over %s: the files are damaged. They are kept in %s; training "
      "goes on from the checkpoint before.",
      "; ".join(failures),
      self._folder.with_name("checkpoints.damaged"),
    )
    self._manager.close()
    if jax.process_index() == 0:
      for step in steps:
        target = self._folder.with_name("checkpoints.damaged") / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (self._folder / str(step)).rename(target)
    multihost_utils.sync_global_devices("damaged checkpoints set aside")
    self._manager = self._open()


def _check_sizes(folder: pathlib.Path) -> None:
  """Raises ValueError where a file is not as long as it was written."""
  try:
    sizes = json.loads((folder / _SIZES).read_text())
  except (OSError, ValueError):
    return  # torn itself; the others may be whole
  for name, size in sizes.items():
    path = folder / name
    found = path.stat().st_size if path.is_file() else 0
    if found != size:
      raise ValueError(f"{name} has {found} of its {size} bytes")


def _flat(state: Any) -> dict[str, Any]:
  leaves, _ = jax.tree.flatten_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in leaves
  }
