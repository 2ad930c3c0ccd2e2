"""Each mistake: exit status 2, one paragraph that says what to do, no trace."""

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

GOOD = {"prompt": "Who?", "chosen": " Mia came.", "rejected": " Nobody came."}
CHAT = {
  "chosen": [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Mia."},
  ],
  "rejected": [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Nobody."},
  ],
}


@dataclasses.dataclass
class Mistake:
  """What differs from a run that works, and what the message must name."""

  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  names: tuple[str, ...] = ()
  config: str = "configs/dpo.py"
  arguments: tuple[str, ...] = ()


Case = Callable[[pathlib.Path, Mapping[str, Any]], Mistake]
CASES: dict[str, Case] = {}


def case(make: Case) -> Case:
  CASES[make.__name__] = make
  return make


@pytest.mark.parametrize("name", CASES)
def test_mistake(name, launch, tiny, tmp_path):
  mistake = CASES[name](tmp_path, tiny)
  done = launch(
    tmp_path / "run",
    {**tiny, **mistake.overrides},
    config=mistake.config,
    arguments=mistake.arguments,
    status=2,
  )
  _check_message(done.stderr, mistake.names)
  assert not (tmp_path / "run").exists()


def test_other_settings_in_the_same_workdir(launch, tiny, tmp_path):
  """The run that is there stays as it is."""
  workdir = tmp_path / "run"
  settings = {**tiny, "train.steps": 1, "data.eval_holdout": 0}
  launch(workdir, settings)
  before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  done = launch(workdir, {**settings, "optimizer.b1": 0.5}, status=2)
  _check_message(
    done.stderr, ("config.optimizer.b1 was 0.9 and is 0.5", "--workdir")
  )
  after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  assert after == before


def _check_message(stderr: str, names: tuple[str, ...]) -> None:
  assert "Traceback" not in stderr
  assert stderr.startswith("jaxpref: ")
  assert stderr.endswith("\n")
  assert "\n\n" not in stderr  # one paragraph
  told = " ".join(stderr.split())
  for name in names:
    assert name in told, told
  assert told[-1] in ".?"
  assert len(told) > 60


@case
def unknown_key(folder, tiny):
  return Mistake({"data.bath_size": 4}, ("config.data.bath_size", "batch_size"))


@case
def unknown_section(folder, tiny):
  return Mistake({"optimiser.b1": 0.5}, ("config.optimiser", "'optimizer'"))


@case
def wrong_type(folder, tiny):
  return Mistake(
    {"data.batch_size": "many"},
    ("config.data.batch_size", "'many'", "a whole number"),
  )


@case
def wrong_choice(folder, tiny):
  return Mistake(
    {"data.truncate": "middle"}, ("config.data.truncate", "keep_end")
  )


@case
def missing_config_file(folder, tiny):
  return Mistake(
    config="configs/dop.py", names=("configs/dop.py", "configs/dpo.py")
  )


@case
def override_without_value(folder, tiny):
  return Mistake(
    arguments=("--config.train.steps", "--config.train.seed=1"),
    names=("--config.train.steps=VALUE",),
  )


@case
def unknown_flag(folder, tiny):
  return Mistake(arguments=("--stpes=3",), names=("--stpes", "--workdir"))


@case
def unknown_loss(folder, tiny):
  return Mistake({"loss.name": "dop"}, ("config.loss.name", "dpo"))


@case
def unknown_loss_option(folder, tiny):
  return Mistake(
    {"loss.label_smothing": 0.1}, ("config.loss.label_smothing", "smoothing")
  )


@case
def no_data(folder, tiny):
  return Mistake({"data.path": ""}, ("config.data.path", ".jsonl"))


@case
def missing_data_file(folder, tiny):
  path = folder / "comparisons.jsonl"
  return Mistake({"data.path": path}, (str(path), "does not exist"))


@case
def empty_file(folder, tiny):
  (path := folder / "empty.jsonl").touch()
  return Mistake({"data.path": path}, (str(path), "is empty"))


@case
def broken_json(folder, tiny):
  """One of hundreds may be broken by default; none may at 0.0."""
  path = _write(folder, [GOOD] * 300)
  lines = path.read_text().split("\n")
  lines[6] = lines[6][:20]
  path.write_text("\n".join(lines))
  return Mistake(
    {"data.path": path, "data.max_rejected": 0.0},
    ("data.jsonl:7", "not JSON", "1 of 300 rows", "config.data.max_rejected"),
  )


@case
def broken_json_in_a_small_file(folder, tiny):
  path = _write(folder, [GOOD] * 20)
  lines = path.read_text().split("\n")
  lines[6] = "{" + lines[6]
  path.write_text("\n".join(lines))
  return Mistake({"data.path": path}, ("data.jsonl:7", "not JSON"))


@case
def row_without_rejected(folder, tiny):
  rows = [GOOD] * 9 + [{"prompt": "Who?", "chosen": " Mia."}]
  path = _write(folder, rows)
  return Mistake({"data.path": path}, ("data.jsonl:10", "rejected"))


@case
def all_too_long(folder, tiny):
  return Mistake(
    {"data.max_length": 8},
    ("comparisons.jsonl", "no example is left", "config.data.max_length"),
  )


@case
def chat_without_template(folder, tiny):
  path = _write(folder, [CHAT] * 8)
  return Mistake(
    {"data.path": path},
    ("data.jsonl:1", "chat template", str(tiny["model.tokenizer"])),
  )


@case
def images_for_a_language_model(folder, tiny):
  rows = [{"prompt": "Mia.", "chosen": "a.png", "rejected": "b.png"}] * 8
  return Mistake(
    {"data.path": _write(folder, rows)},
    ("data.jsonl:1", "hold images", "config.data.path"),
  )


@case
def no_comparisons(folder, tiny):
  path = _write(folder, [{"prompt": "Who?", "completion": " Mia."}] * 40)
  return Mistake(
    {"data.path": path}, ("holds no comparison", "name=kto", "sft")
  )


@case
def holdout_of_everything(folder, tiny):
  return Mistake({"data.eval_holdout": 96}, ("data.eval_holdout", "96", "95"))


@case
def more_mesh_axes_than_devices(folder, tiny):
  return Mistake(
    {"mesh.data": 2, "mesh.tensor": 2}, ("config.mesh", "device", "1 ")
  )


@case
def pattern_that_is_none(folder, tiny):
  return Mistake(
    {"score.pattern": "'(happy'"}, ("config.score.pattern", "(happy")
  )


@case
def missing_model_folder(folder, tiny):
  path = folder / "model"
  return Mistake(
    {"model.path": path, "model.arch": {}, "model.tokenizer": ""}, (str(path),)
  )


@case
def adapter_without_rank(folder, tiny):
  return Mistake(
    {"model.lora.rank": 0, "model.lora.alpha": 32},
    ("config.model.lora.rank", "all weights would train"),
  )


@case
def adapter_of_no_layer(folder, tiny):
  return Mistake(
    {"model.lora.rank": 4, "model.lora.targets": "query"},
    ("config.model.lora.targets", "'query'", "self_attn.q_proj"),
  )


@case
def adapter_with_all_dropped(folder, tiny):
  return Mistake(
    {"model.lora.rank": 4, "model.lora.dropout": 1.0},
    ("config.model.lora.dropout", "below 1"),
  )


@case
def adapter_scaled_by_nothing(folder, tiny):
  return Mistake(
    {"model.lora.rank": 4, "model.lora.alpha": 0.0},
    ("config.model.lora.alpha", "above 0"),
  )


@case
def adapter_of_another_model(folder, tiny):
  settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
  (folder / "adapter_config.json").write_text(json.dumps(settings))
  layer = "base_model.model.model.layers.0.self_attn.q_proj"
  shapes = {"A": (2, 12345), "B": (12345, 2)}
  tensors = {
    f"{layer}.lora_{letter}.weight": np.zeros(shape, np.float32)
    for letter, shape in shapes.items()
  }
  save_file(tensors, folder / "adapter_model.safetensors")
  return Mistake(
    {"model.lora.path": folder},
    ("lora_A", "[2, 12345]", "config.model.lora.path"),
  )


@case
def adapter_that_is_not_there(folder, tiny):
  return Mistake({"model.lora.path": folder}, ("adapter_config.json", "PEFT"))


@case
def model_and_arch(folder, tiny):
  return Mistake(
    {"model.path": folder}, ("config.model.path", "config.model.arch")
  )


@case
def folder_without_tokenizer(folder, tiny):
  return Mistake(
    {"model.tokenizer": folder}, (str(folder), "tokenizer", "tokenizer.json")
  )


@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_model_folder_with_missing_tensors(
  launch, tiny, shared, tmp_path, loss
):
  """Noticed before anything is written, whether or not weights are needed."""
  shutil.copytree(shared / "models" / "stories260K", tmp_path / "model")
  path = tmp_path / "model" / "model.safetensors"
  tensors = load_file(path)
  lost = "model.layers.2.mlp.up_proj.weight"
  del tensors[lost]
  path.chmod(0o644)
  save_file(tensors, path)
  given = {"model.path": tmp_path / "model", "model.arch": {}}
  settings = {**tiny, **given, "model.tokenizer": "", "loss.name": loss}
  done = launch(tmp_path / "run", settings, status=2)
  _check_message(done.stderr, (str(tmp_path / "model"), lost, "config.json"))
  assert not (tmp_path / "run").exists()


def _write(folder: pathlib.Path, rows: list[Any]) -> pathlib.Path:
  path = folder / "data.jsonl"
  # A prompt of its own each, or a holdout would take all of one.
  told = [
    {**row, "prompt": f"{i} {row['prompt']}"} if "prompt" in row else row
    for i, row in enumerate(rows)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in told))
  return path
