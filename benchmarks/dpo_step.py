"""Pairs a second of DPO training: ours, and TRL's beside it in one run.

  python benchmarks/dpo_step.py --against trl --model FOLDER --data FILE

Each side trains in a process of its own, in turn, `--repeat` times: the same
weights, the same comparisons in the same order, float32, the same AdamW. The
rate is that of the median step, the first two left out (they compile). One
JSON object goes to stdout, with both loss curves, which must agree.

Without --data the comparisons are simulated stories; `--model random` is a
Llama of 58 million random parameters with the tokenizer of `--tokenizer`.
Needs the extra `bench`.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
from typing import Any

RANDOM = {
  "vocab_size": 32000,
  "hidden_size": 512,
  "intermediate_size": 1376,
  "num_hidden_layers": 8,
  "num_attention_heads": 8,
  "num_key_value_heads": 8,
}
BATCH, BETA, LEARNING_RATE = 8, 0.1, 1e-4
WARM_UP = 2  # steps left out


def main() -> None:
  flags = _parse()
  if flags.side:
    print(json.dumps(SIDES[flags.side](flags)))
    return
  with tempfile.TemporaryDirectory() as folder:
    _make_inputs(flags, pathlib.Path(folder))
    sides = ["jaxpref"] + ([flags.against] if flags.against else [])
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(flags.repeat):
      for side in sides:
        results[side].append(_in_process(side, flags))
  print(json.dumps(_compare(results, flags), indent=1))


def run_jaxpref(flags: argparse.Namespace) -> dict[str, Any]:
  """Trains through `run`, as the command line does."""
  from jaxpref import config
  from jaxpref.fit.metrics import read_metrics
  from jaxpref.run import run

  settings = config.build(
    {
      "model": {
        "path": flags.model,
        "dtype": "float32",
        "remat": "dots_with_no_batch_dims_saveable",
      },
      "reference": {"mode": flags.reference},
      "data": {
        "path": flags.data,
        "batch_size": BATCH,
        "max_length": flags.max_length,
        "shuffle": False,
        "max_rejected": 1.0,
      },
      "loss": {"name": "dpo", "beta": BETA},
      "optimizer": {
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "grad_clip": 0.0,
      },
      "train": {"steps": flags.steps, "checkpoint_every": 0},
      "sample": {"num_prompts": 0},
    }
  )
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    with open(os.devnull, "w") as nowhere:
      sys.stdout, stdout = nowhere, sys.stdout
      run(settings, workdir)
      sys.stdout = stdout
    lines = read_metrics(workdir)
  return _result(
    [BATCH / line["pairs_per_second"] for line in lines],
    [line["loss"] for line in lines],
  )


def run_trl(flags: argparse.Namespace) -> dict[str, Any]:
  """Trains with TRL's DPOTrainer in its fastest settings on CPU."""
  import time

  from datasets import Dataset, disable_progress_bars
  import torch
  import transformers
  import trl

  disable_progress_bars()
  transformers.utils.logging.set_verbosity_error()
  torch.set_num_threads(os.cpu_count() or 1)
  times: list[float] = []

  class Clock(transformers.TrainerCallback):
    def on_step_begin(self, *_: Any, **__: Any) -> None:
      if not times:
        times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
      times.append(time.perf_counter())

  class InOrder(trl.DPOTrainer):
    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
      return torch.utils.data.SequentialSampler(self.train_dataset)

  with tempfile.TemporaryDirectory() as folder:
    trainer = InOrder(
      model=transformers.AutoModelForCausalLM.from_pretrained(
        flags.model, dtype=torch.float32, attn_implementation="sdpa"
      ),
      train_dataset=Dataset.from_list(_rows(flags)),
      processing_class=transformers.AutoTokenizer.from_pretrained(flags.model),
      callbacks=[Clock()],
      args=trl.DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        max_steps=flags.steps,
        max_length=flags.max_length,
        beta=BETA,
        learning_rate=LEARNING_RATE,
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
  losses = [
    line["loss"] for line in trainer.state.log_history if "loss" in line
  ]
  steps = [after - before for before, after in itertools.pairwise(times)]
  return _result(steps, losses)


SIDES = {"jaxpref": run_jaxpref, "trl": run_trl}


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--against", choices=["trl"])
  parser.add_argument("--model", default="random", help="a folder, or random")
  parser.add_argument("--tokenizer", default="", help="a folder, for random")
  parser.add_argument("--data", default="", help="JSONL; '' = simulated")
  parser.add_argument("--reference", choices=["cached", "live"],
                      default="cached")  # fmt: skip
  parser.add_argument("--max-length", type=int, default=512)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--repeat", type=int, default=2)
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  return parser.parse_args()


def _make_inputs(flags: argparse.Namespace, folder: pathlib.Path) -> None:
  """Writes what the flags leave open, and points them at it."""
  import jax

  from jaxpref.data import simulated
  from jaxpref.models import huggingface
  from jaxpref.models.build import define, init_params
  from jaxpref.models.llama.config import LlamaConfig

  if not flags.data:
    simulated.write_corpus(
      folder / "corpus", num_stories=2, num_comparisons=80, seed=0
    )
    flags.data = str(folder / "corpus" / "comparisons.jsonl")
    flags.tokenizer = flags.tokenizer or str(folder / "corpus" / "tokenizer")
  flags.description = flags.model
  if flags.model == "random":
    if not flags.tokenizer:
      sys.exit("--model random with --data needs --tokenizer FOLDER")
    definition = define(
      LlamaConfig.from_arch({**RANDOM, "bos_token_id": 1, "eos_token_id": 2}),
      dtype="float32",
    )
    huggingface.save_pretrained(
      folder / "model",
      definition,
      init_params(definition, jax.random.key(0)),
      flags.tokenizer,
    )
    flags.model = str(folder / "model")
  rows = _rows(flags)
  flags.data = str(folder / "rows.jsonl")
  text = "".join(json.dumps(row) + "\n" for row in rows)
  pathlib.Path(flags.data).write_text(text)


def _rows(flags: argparse.Namespace) -> list[dict[str, str]]:
  """The comparisons as prompt, chosen and rejected; both sides read these."""
  text = pathlib.Path(flags.data).read_text()
  if flags.data.endswith(".jsonl"):
    rows = [json.loads(line) for line in text.splitlines()]
  else:
    rows = json.loads(text)["rows"]
  keys = ("prompt", "chosen", "rejected")
  return [{key: row[key] for key in keys} for row in rows]


def _in_process(side: str, flags: argparse.Namespace) -> dict[str, Any]:
  names = ("model", "data", "reference", "max_length", "steps")
  given = [
    f"--{name.replace('_', '-')}={getattr(flags, name)}" for name in names
  ]
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
  }
  done = subprocess.run(
    [sys.executable, __file__, f"--side={side}", *given],
    env=environment,
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def _result(seconds: list[float], losses: list[float]) -> dict[str, Any]:
  rate = BATCH / statistics.median(seconds[WARM_UP:])
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return {
    "pairs_per_second": round(rate, 3),
    "step_seconds": [round(each, 3) for each in seconds],
    "peak_rss_gib": round(peak, 2),
    "losses": losses,
  }


def _compare(
  results: dict[str, list[dict[str, Any]]], flags: argparse.Namespace
) -> dict[str, Any]:
  summary: dict[str, Any] = {
    "model": flags.description,
    "reference": flags.reference,
    "batch_size": BATCH,
    "cpus": os.cpu_count(),
    "sides": results,
  }
  if flags.against:
    pairs = zip(results["jaxpref"], results[flags.against], strict=True)
    ratios = [a["pairs_per_second"] / b["pairs_per_second"] for a, b in pairs]
    ours, theirs = (each[0]["losses"] for each in results.values())
    summary["speed_ratios"] = [round(ratio, 2) for ratio in ratios]
    summary["largest_loss_difference"] = max(
      abs(a - b) for a, b in zip(ours, theirs, strict=True)
    )
  return summary


if __name__ == "__main__":
  main()
