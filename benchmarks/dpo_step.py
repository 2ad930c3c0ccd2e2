"""Pairs a second of DPO training: ours, and a peer's beside it in one run.

  python benchmarks/dpo_step.py --against trl --reference live \
    --model random --tokenizer FOLDER --data FILE

Each side trains in a process of its own, in turn, `--repeat` times: the same
weights, the same comparisons in the same order, float32, the same AdamW, with
log-probs of the reference computed before training (`cached`) or beside it
(`live`). The first half of the steps compiles; the rate is that of the second
half, with `--steps` 20 the same 80 comparisons once more. One JSON object goes
to stdout, with the loss curves, which must agree. Processor seconds are given
too: on a busy machine they move less.

Without --data the comparisons are simulated stories; `--model random` is a
Llama of 58 million random parameters with the tokenizer of `--tokenizer`.
`--against trl` needs the extra `bench`; `--against tunix` an environment with
google-tunix 0.1.7, whose interpreter is `--python`.
"""

import argparse
import json
import os
import pathlib
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
  "rope_theta": 1e6,  # Tunix's, whatever the configuration says
  "bos_token_id": 1,
  "eos_token_id": 2,
}
SHARED = {"batch_size": 8, "beta": 0.1, "learning_rate": 1e-4}
OURS = "jaxpref"


def main() -> None:
  flags = _parse()
  with tempfile.TemporaryDirectory() as folder:
    given = _make_inputs(flags, pathlib.Path(folder))
    sides = [OURS] + ([flags.against] if flags.against else [])
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(flags.repeat):
      for side in sides:
        results[side].append(_in_process(side, flags, given))
        print(side, results[side][-1], file=sys.stderr)
  print(json.dumps(_compare(results, flags), indent=1))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--against", choices=["trl", "tunix"])
  parser.add_argument("--python", default=sys.executable,
                      help="the interpreter of the peer")  # fmt: skip
  parser.add_argument("--model", default="random", help="a folder, or random")
  parser.add_argument("--tokenizer", default="", help="a folder, for random")
  parser.add_argument("--data", default="", help="JSONL; '' = simulated")
  parser.add_argument("--reference", choices=["cached", "live"],
                      default="cached")  # fmt: skip
  parser.add_argument("--remat", default="dots_with_no_batch_dims_saveable",
                      help="ours; see config.model")  # fmt: skip
  parser.add_argument("--max-length", type=int, default=512)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--buckets", type=int, default=4,
                      help="ours; see config.data")  # fmt: skip
  parser.add_argument("--repeat", type=int, default=2)
  return parser.parse_args()


def _make_inputs(
  flags: argparse.Namespace, folder: pathlib.Path
) -> dict[str, Any]:
  """Writes model, comparisons and their tokens; returns the sides' flags."""
  import jax

  from jaxpref.data import simulated
  from jaxpref.models import huggingface
  from jaxpref.models.build import define, init_params
  from jaxpref.models.llama.config import LlamaConfig

  model, tokenizer, data = flags.model, flags.tokenizer, flags.data
  if not data:
    simulated.write_corpus(
      folder / "corpus", num_stories=2, num_comparisons=80, seed=0
    )
    data = str(folder / "corpus" / "comparisons.jsonl")
    tokenizer = tokenizer or str(folder / "corpus" / "tokenizer")
  if model == "random":
    if not tokenizer:
      sys.exit("--model random with --data needs --tokenizer FOLDER")
    definition = define(LlamaConfig.from_arch(RANDOM), dtype="float32")
    params = init_params(definition, jax.random.key(0))
    model = str(folder / "model")
    huggingface.save_pretrained(
      pathlib.Path(model), definition, params, tokenizer
    )
  rows = folder / "rows.jsonl"
  _write(rows, _rows(data))
  tokens = folder / "tokens.jsonl"
  _write(tokens, _tokens(rows, model, flags.max_length))
  return {
    **SHARED,
    "model": model,
    "rows": str(rows),
    "tokens": str(tokens),
    "reference": flags.reference,
    "remat": flags.remat,
    "buckets": flags.buckets,
    "max_length": flags.max_length,
    "steps": flags.steps,
  }


def _rows(data: str) -> list[dict[str, str]]:
  """The comparisons as prompt, chosen and rejected."""
  text = pathlib.Path(data).read_text()
  if data.endswith(".jsonl"):
    rows = [json.loads(line) for line in text.splitlines()]
  else:
    rows = json.loads(text)["rows"]
  keys = ("prompt", "chosen", "rejected")
  return [{key: row[key] for key in keys} for row in rows]


def _tokens(
  rows: pathlib.Path, model: str, max_length: int
) -> list[dict[str, list[int]]]:
  """The same as token ids, for a peer that takes no text."""
  from jaxpref import config
  from jaxpref.data.prepared import prepare

  found = prepare(
    config.Data(max_length=max_length, max_rejected=1.0), str(rows), model
  )
  responses = ("chosen", found.better), ("rejected", found.worse)
  return [
    {
      "prompt": found.prompt(example).tolist(),
      **{
        side: found.response(int(numbers[found.first_comparison[example]]))
        .tolist()
        for side, numbers in responses
      },
    }
    for example in range(len(found))
  ]  # fmt: skip


def _write(path: pathlib.Path, rows: list[Any]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _in_process(
  side: str, flags: argparse.Namespace, given: dict[str, Any]
) -> dict[str, Any]:
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
  }
  python = sys.executable if side == OURS else flags.python
  script = pathlib.Path(__file__).with_name("dpo_sides.py")
  done = subprocess.run(
    [python, str(script), side, json.dumps(given)],
    env=environment,
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  result = json.loads(done.stdout.splitlines()[-1])
  for name in ("step_seconds", "processor_seconds"):
    late = result[name][-(flags.steps // 2) :]
    result[f"mean_{name}"] = statistics.mean(late)
  pairs = SHARED["batch_size"]
  result["pairs_per_second"] = pairs / result["mean_step_seconds"]
  return result


def _compare(
  results: dict[str, list[dict[str, Any]]], flags: argparse.Namespace
) -> dict[str, Any]:
  summary: dict[str, Any] = {
    "model": flags.model,
    "reference": flags.reference,
    "batch_size": SHARED["batch_size"],
    "cpus": os.cpu_count(),
    "sides": results,
  }
  if flags.against:
    pairs = list(zip(results[OURS], results[flags.against], strict=True))

    def ratios(name: str) -> list[float]:
      return [round(b[name] / a[name], 2) for a, b in pairs]

    losses = [each[0]["losses"] for each in results.values()]
    summary |= {
      "speed_ratios": ratios("mean_step_seconds"),
      "processor_ratios": ratios("mean_processor_seconds"),
      "memory_ratios": ratios("peak_rss_gib"),
      "largest_loss_difference": max(
        abs(a - b) for a, b in zip(*losses, strict=True)
      ),
    }
  return summary


if __name__ == "__main__":
  main()
