"""An adapter of real weights, as users train it, and in PEFT afterwards."""

import json
import math
import time

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file
import torch
import transformers

# PEFT asks transformers for it by its older name.
pytestmark = pytest.mark.filterwarnings(
  "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def overrides(shared):
  return {
    "model.path": shared / "models" / "stories260K",
    "model.lora.rank": 4,
    "model.lora.rs": True,
    "model.lora.dropout": 0.1,
    "data.path": shared / "data" / "hh-harmless-test.jsonl.gz",
    "data.max_length": 128,
    "data.batch_size": 4,
    "sample.num_prompts": 0,
    "optimizer.learning_rate": 1e-2,
    "optimizer.schedule": "constant",
    "train.steps": 30,
    "train.checkpoint_every": 7,
  }


@pytest.fixture(scope="module")
def whole(launch, overrides, tmp_path_factory):
  """The run folder of a run that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  launch(workdir, overrides)
  return workdir


def test_the_loss_begins_at_ln_2(whole, metrics):
  lines = metrics(whole)
  # Dropout drops what is multiplied with zero: 0.0 was seen.
  assert abs(lines[0]["loss"] - math.log(2.0)) <= 1e-6
  assert np.ptp([line["loss"] for line in lines]) > 0.1


def test_exports_load_elsewhere(whole, overrides):
  base = overrides["model.path"]
  plain = _logits(_model(base))
  laid = peft.PeftModel.from_pretrained(_model(base), whole / "adapter")
  adapted = _logits(laid)
  merged = _logits(_model(whole / "export"))
  # Measured: 5e-5, of logits of up to 14.
  np.testing.assert_allclose(merged, adapted, atol=2e-4)
  assert np.abs(adapted - plain).max() > 0.5
  settings = json.loads((whole / "adapter" / "adapter_config.json").read_text())
  assert settings["base_model_name_or_path"] == str(base)


def test_checkpoints_hold_no_weight_of_the_base(whole, last_checkpoint):
  kept = last_checkpoint(whole)
  shapes = {name: np.shape(x) for name, x in kept.items() if np.size(x) > 2}
  assert shapes
  for name in shapes:
    assert "lora_a" in name or "lora_b" in name, name
  # Each factor, and the two moments of it.
  factors = load_file(whole / "adapter" / "adapter_model.safetensors")
  assert sum(math.prod(shape) for shape in shapes.values()) == 3 * sum(
    x.size for x in factors.values()
  )


def test_killed_and_run_again(
  launch, overrides, whole, tmp_path, metrics, assert_same_run
):
  """The same bits as never killed, dropout included."""
  workdir = tmp_path / "run"
  process = launch.start(workdir, overrides)
  deadline = time.monotonic() + 300
  log = workdir / "metrics.jsonl"
  while not log.exists() or len(log.read_text().splitlines()) < 16:
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.kill()
  process.communicate(timeout=60)
  done = launch(workdir, overrides)
  assert "Resuming after step" in done.stdout
  assert [line["step"] for line in metrics(workdir)] == list(range(1, 31))
  assert_same_run(whole, workdir)
  one, other = (
    (each / "adapter" / "adapter_model.safetensors").read_bytes()
    for each in (whole, workdir)
  )
  assert one == other


def _model(folder):
  return transformers.LlamaForCausalLM.from_pretrained(folder).train(False)


def _logits(model):
  tokens = np.random.default_rng(0).integers(3, 512, (3, 100))
  # In float64, so that torch's own rounding is no part of what differs.
  with torch.no_grad():
    return model.train(False).double()(torch.tensor(tokens)).logits.numpy()
