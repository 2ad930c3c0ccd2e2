"""The run folder: whose run it is, and what the run was given."""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
from typing import Any

import jax

from jaxpref import config, losses
from jaxpref.data.prepared import Prepared
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.fit.loss import is_online, takes_steps

# A rerun may change these; any other change would make it another run. The
# schedule follows `train.steps`; the rest only decides what is written, and
# how the work is cut, which changes no more than the last bits.
_FREE = (
  "train.steps", "train.log_every", "train.eval_every",
  "train.checkpoint_every", "train.guard", "data.epochs",
  "data.rows_per_device", "data.row_length", "model.remat", "model.attention",
  "model.head_block", "mesh.", "sample.", "score.", "stages", "reference.mode",
  "reference.fill",
)  # fmt: skip
# And these not where training samples images; two where it takes their steps.
_SAMPLED: tuple[str, ...] = (
  "sample.sampler", "sample.steps", "sample.guidance", "score.rater",
  "score.models",
)  # fmt: skip


def check_folder(settings: config.Config, workdir: pathlib.Path) -> None:
  """Raises UserError for a folder that this run cannot have.

  It must be possible to write it, and a run that has checkpoints there must
  have had the same settings, but for those that may change.
  """
  if workdir.exists() and not workdir.is_dir():
    raise UserError(
      f"--workdir={workdir} is a file. Give the name of a folder, which is "
      "made where there is none."
    )
  nearest = next(each for each in (workdir, *workdir.parents) if each.exists())
  if not os.access(nearest, os.W_OK):
    raise UserError(
      f"--workdir={workdir}: {nearest} cannot be written. Give a folder where "
      "you may write."
    )
  old = _read(workdir / "config.json")
  if old is None:
    return
  if "train" not in old:
    raise UserError(
      f"--workdir={workdir} holds a config.json that is not of a run. Give an "
      "empty folder, or one that is not there yet."
    )
  if has_checkpoint(workdir):
    # What an older version did not know was as it is by default.
    before = _flat(config.to_dict(config.Config())) | _flat(old)
    now = _flat(config.to_dict(settings))
    _refuse_changes(workdir, before, now)


def check_same_data(
  workdir: pathlib.Path, train: Prepared, test: Prepared | None
) -> None:
  """Raises UserError where a run would go on with other data."""
  old = _read(workdir / "data.json") or {}
  if has_checkpoint(workdir) and "fingerprint" in old.get("train", {}):
    now = _fingerprint(train, test)
    if old["train"]["fingerprint"] != now:
      raise UserError(
        f"{workdir} holds a run on other data: the files of config.data.path "
        "or eval_path, or the tokenizer, have changed since it began. Give "
        "another --workdir, or the old files to go on with that run."
      )


def check_same_base(workdir: pathlib.Path, weights: str) -> None:
  """Raises UserError where an adapter would go on over other weights.

  Its checkpoints hold the adapter alone.
  """
  old = _read(workdir / "base.json") or {}
  if has_checkpoint(workdir) and old.get("weights", weights) != weights:
    raise UserError(
      f"{workdir} holds a run of an adapter over other weights: the files in "
      "config.model.path (or in the adapter's folder) have changed since it "
      "began. Give another --workdir, or the old files to go on with that run."
    )


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Whether there is one, whole or not."""
  return any(each.name.isdigit() for each in workdir.glob("checkpoints/*"))


def write_inputs(
  settings: config.Config,
  workdir: pathlib.Path,
  train: Prepared,
  test: Prepared | None,
  base: str = "",
) -> None:
  """config.json, data.json and rejected.jsonl, each whole or not at all.

  And base.json, where an adapter trains: `base` is a digest of the weights
  that it changes.
  """
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  fingerprint = {"fingerprint": _fingerprint(train, test)}
  stats: dict[str, Any] = {"train": {**train.stats, **fingerprint}}
  rejected = train.rejected
  if test and settings.data.eval_holdout:
    # Held-out examples are part of the same preparation.
    stats["eval"] = {"examples": len(test)}
  elif test:
    stats["eval"] = test.stats
    rejected += test.rejected
  files = {
    "config.json": _json(config.to_dict(settings)),
    "data.json": _json(stats),
    "rejected.jsonl": rejected,
  }
  if base:
    files["base.json"] = _json({"weights": base})
  for name, content in files.items():
    with replacing(workdir / name) as partial:
      partial.write_bytes(content)


def _refuse_changes(
  workdir: pathlib.Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  differing = [
    key
    for key in sorted(before.keys() | now.keys())
    if before.get(key) != now.get(key)
  ]
  kept = _kept(now.get("loss.name"))
  if _other_reference(before, now):
    kept = (*kept, "reference.mode")
  changed = [
    f"config.{key} was {before.get(key)!r} and is {now.get(key)!r}"
    for key in differing
    if key.startswith(kept) or not key.startswith(_FREE)
  ]
  if changed:
    raise UserError(
      f"{workdir} holds a run with other settings: {'; '.join(changed)}. "
      "Give another --workdir, or the old settings to go on with that run."
    )


def _kept(name: Any) -> tuple[str, ...]:
  """What of sampling the loss of a name depends on."""
  if name not in losses.names():
    return ()
  if is_online(losses.get(name)):
    return _SAMPLED
  return _SAMPLED[:2] if takes_steps(losses.get(name)) else ()


def _other_reference(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
  """Whether one compares with the base alone, one with a given adapter too."""
  modes = [each.get("reference.mode") for each in (before, now)]
  given = now.get("model.lora.path") or now.get("model.prompt.path")
  return bool(given) and modes.count("base") == 1


def _fingerprint(train: Prepared, test: Prepared | None) -> str:
  parts = train.fingerprint + (test.fingerprint if test else "")
  return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _read(path: pathlib.Path) -> Any:
  """What a JSON file holds; None where there is no such file."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except ValueError:
    return {}


def _json(value: Any) -> bytes:
  return (json.dumps(value, indent=2) + "\n").encode()


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix.rstrip("."): tree}
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}{key}.")
  return flat
