"""One side of `dpo_step.py`: ours, TRL's or Tunix's training, in one process.

  python benchmarks/dpo_sides.py SIDE FLAGS_AS_JSON

Flags: model (a folder), rows and tokens (JSONL of the same comparisons),
reference (cached or live), max_length, steps, batch_size, beta, learning_rate,
remat, buckets. Prints one JSON object: seconds and processor seconds of each
step, peak memory and losses.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any


class Clock:
  """Ticks between steps: wall and processor seconds."""

  def __init__(self) -> None:
    self.ticks: list[tuple[float, float]] = []

  def tick(self) -> None:
    self.ticks.append((time.perf_counter(), time.process_time()))

  def result(self, losses: list[float], **more: Any) -> dict[str, Any]:
    pairs = list(itertools.pairwise(self.ticks))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
      "step_seconds": [round(b[0] - a[0], 3) for a, b in pairs],
      "processor_seconds": [round(b[1] - a[1], 3) for a, b in pairs],
      "peak_rss_gib": round(peak, 2),
      "losses": losses,
      **more,
    }


def run_jaxpref(flags: argparse.Namespace) -> dict[str, Any]:
  """Trains through `run`, as the command line does."""
  from jaxpref import config
  from jaxpref.fit.metrics import RunLog, read_metrics
  from jaxpref.run import run

  clock, write = Clock(), RunLog.write

  def timed(self: RunLog, step: int, values: Any) -> None:
    clock.tick()
    write(self, step, values)

  RunLog.write = timed  # type: ignore[method-assign]
  settings = config.build(
    {
      "model": {"path": flags.model, "dtype": "float32", "remat": flags.remat},
      "reference": {"mode": flags.reference},
      "data": {
        "path": flags.rows,
        "batch_size": flags.batch_size,
        "buckets": flags.buckets,
        "max_length": flags.max_length,
        "shuffle": False,
        "max_rejected": 1.0,
      },
      "loss": {"name": "dpo", "beta": flags.beta},
      "optimizer": {
        "learning_rate": flags.learning_rate,
        "schedule": "constant",
        "grad_clip": 0.0,
      },
      "train": {"steps": flags.steps, "checkpoint_every": 0},
      "sample": {"num_prompts": 0},
    }
  )
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    run(settings, workdir)
    lines = read_metrics(workdir)
  waited = [line["data/wait_share"] for line in lines]
  return clock.result([line["loss"] for line in lines], wait_shares=waited)


def run_trl(flags: argparse.Namespace) -> dict[str, Any]:
  """Trains with TRL's DPOTrainer in its fastest settings on CPU."""
  from datasets import Dataset, disable_progress_bars
  import torch
  import transformers
  import trl

  disable_progress_bars()
  transformers.utils.logging.set_verbosity_error()
  torch.set_num_threads(os.cpu_count() or 1)
  clock = Clock()

  class Ticks(transformers.TrainerCallback):
    def on_step_begin(self, *_: Any, **__: Any) -> None:
      if not clock.ticks:
        clock.tick()

    def on_step_end(self, *_: Any, **__: Any) -> None:
      clock.tick()

  class InOrder(trl.DPOTrainer):
    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
      return torch.utils.data.SequentialSampler(self.train_dataset)

  with tempfile.TemporaryDirectory() as folder:
    trainer = InOrder(
      model=transformers.AutoModelForCausalLM.from_pretrained(
        flags.model, dtype=torch.float32, attn_implementation="sdpa"
      ),
      train_dataset=Dataset.from_list(_read(flags.rows)),
      processing_class=transformers.AutoTokenizer.from_pretrained(flags.model),
      callbacks=[Ticks()],
      args=trl.DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=flags.batch_size,
        max_steps=flags.steps,
        max_length=flags.max_length,
        beta=flags.beta,
        learning_rate=flags.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=1e9,
        gradient_checkpointing=False,
        precompute_ref_log_probs=flags.reference == "cached",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
      ),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
  history = trainer.state.log_history
  losses = [line["loss"] for line in history if "loss" in line]
  return clock.result(losses, version=trl.__version__)


def run_tunix(flags: argparse.Namespace) -> dict[str, Any]:
  """Trains with Tunix's DPOTrainer, all batches of one shape, as it pads.

  It keeps no reference log-probs; for `cached` they are made by its own
  forward pass before training, and given to it.
  """
  import dataclasses
  import importlib.metadata

  from flax import nnx
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params
  from tunix.sft.dpo import dpo_trainer

  shape = json.loads((pathlib.Path(flags.model) / "config.json").read_text())
  settings = llama.ModelConfig(
    num_layers=shape["num_hidden_layers"],
    vocab_size=shape["vocab_size"],
    embed_dim=shape["hidden_size"],
    hidden_dim=shape["intermediate_size"],
    num_heads=shape["num_attention_heads"],
    head_dim=shape["hidden_size"] // shape["num_attention_heads"],
    num_kv_heads=shape["num_key_value_heads"],
    rope_theta=int(shape["rope_theta"]),
    norm_eps=shape["rms_norm_eps"],
    weight_tying=shape["tie_word_embeddings"],
    remat_config=llama.RematConfig.NONE,
  )

  def load() -> Any:
    return params.create_model_from_safe_tensors(
      flags.model, settings, dtype=jnp.float32
    )

  rows = _read(flags.tokens)
  longest = {name: max(len(row[name]) for row in rows) for name in rows[0]}
  size = {"prompt": longest["prompt"]}
  size["chosen"] = size["rejected"] = max(
    longest["chosen"], longest["rejected"]
  )

  def padded(batch: list[Any], name: str) -> dict[str, np.ndarray]:
    """Prompts are padded on the left, responses on the right."""
    ids = np.zeros((len(batch), size[name]), np.int32)
    mask = np.zeros_like(ids)
    for ids_row, mask_row, row in zip(ids, mask, batch, strict=True):
      count = len(row[name])
      at = slice(-count, None) if name == "prompt" else slice(count)
      ids_row[at], mask_row[at] = row[name], 1
    return {f"{name}_ids": ids, f"{name}_mask": mask}

  starts = [step * flags.batch_size % len(rows) for step in range(flags.steps)]
  batches = [rows[at : at + flags.batch_size] for at in starts]
  inputs = [
    dpo_trainer.TrainingInput(
      **padded(batch, "prompt"),
      **padded(batch, "chosen"),
      **padded(batch, "rejected"),
    )
    for batch in batches
  ]
  cached: list[tuple[np.ndarray, np.ndarray]] = []

  class Trainer(dpo_trainer.DPOTrainer):
    def _prepare_inputs(self, batch: Any) -> Any:
      batch = super()._prepare_inputs(batch)
      if not cached:
        return batch
      chosen, rejected = cached[self.iter_steps]
      return dataclasses.replace(
        batch, ref_chosen_logps=chosen, ref_rejected_logps=rejected
      )

  class Losses:
    """The trainer's hooks; all but one do nothing."""

    def __init__(self) -> None:
      self.seen: list[float] = []

    def on_train_step_end(self, _: Any, __: int, loss: Any) -> None:
      self.seen.append(float(loss))

    def __getattr__(self, name: str) -> Any:
      if name.startswith("on_"):
        return lambda *_: None
      raise AttributeError(name)

  def trainer(model: Any, reference: Any) -> Any:
    return Trainer(
      model,
      reference,
      optax.adamw(flags.learning_rate, weight_decay=0.0),
      dpo_trainer.DPOTrainingConfig(
        eval_every_n_steps=10**6, max_steps=flags.steps, beta=flags.beta
      ),
    )

  model = load()
  if flags.reference == "cached":
    scorer = trainer(model, model)
    found = [scorer._prepare_inputs(each) for each in inputs]
    for each in found:
      both = each.ref_chosen_logps, each.ref_rejected_logps
      cached.append((np.asarray(both[0]), np.asarray(both[1])))
    del scorer, found
  training = trainer(model, load() if flags.reference == "live" else None)
  clock, losses = Clock(), Losses()
  training.with_training_hooks(losses)

  def feed() -> Any:
    """A batch is asked for when a step was begun: wait until it has ended."""
    for batch in inputs:
      jax.block_until_ready(nnx.to_pure_dict(nnx.state(training.model)))
      clock.tick()
      yield batch

  training.train(feed())
  jax.block_until_ready(nnx.to_pure_dict(nnx.state(training.model)))
  clock.tick()
  version = importlib.metadata.version("google-tunix")
  return clock.result(losses.seen, version=version)


def _read(path: str) -> list[dict[str, Any]]:
  lines = pathlib.Path(path).read_text().splitlines()
  return [json.loads(line) for line in lines]


SIDES = {"jaxpref": run_jaxpref, "trl": run_trl, "tunix": run_tunix}


if __name__ == "__main__":
  side, flags = sys.argv[1:]
  with contextlib.redirect_stdout(sys.stderr):
    result = SIDES[side](argparse.Namespace(**json.loads(flags)))
  print(json.dumps(result))
