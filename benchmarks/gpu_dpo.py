"""DPO at the sizes people train, through the real step: one device's speed.

  python benchmarks/gpu_dpo.py --preset llama-3.2-1b
  python benchmarks/gpu_dpo.py --preset llama-3.1-8b --lora-rank 16
  JAX_PLATFORMS=cpu python benchmarks/gpu_dpo.py --preset tiny

Random weights of a published shape, made-up comparisons of up to `--length`
tokens, packed, cached reference, AdamW, bfloat16 on accelerators. The figures
are those of `metrics.jsonl`: medians of the steps after the first few, which
compile. Useful operations leave out pads, repeated prompts and what is computed
again. `--profile FOLDER` traces two steps for TensorBoard or Perfetto. `tiny`
shows that the script works, no more. One JSON object goes to stdout.
"""

import argparse
from collections.abc import Iterator
import contextlib
import json
import pathlib
import random
import resource
import statistics
import sys
import tempfile
from typing import Any

import jax

from jaxpref import config
from jaxpref.data import simulated, tokenizer
from jaxpref.data.prepared import prepare
from jaxpref.fit.metrics import RunLog, read_metrics
from jaxpref.run import run

WARM_UP = 3  # steps left out
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def main() -> None:
  flags = _parse()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    settings = _settings(flags, _write_data(flags.length, folder))
    with contextlib.redirect_stdout(sys.stderr), _profiled(flags.profile):
      run(settings, folder / "run")
    lines = read_metrics(folder / "run")[WARM_UP:]
    tokens = _tokens_per_pair(settings)
  print(json.dumps(_summary(flags, lines, tokens), indent=1))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--preset", default="tiny", help="tiny, or a published "
                      "shape of config.model.arch.preset")  # fmt: skip
  parser.add_argument("--lora-rank", type=int, default=0, help="0 = full")
  parser.add_argument("--length", type=int, default=2048,
                      help="tokens of a prompt and a response")  # fmt: skip
  parser.add_argument("--rows", type=int, default=2,
                      help="rows of twice that, a micro-batch")  # fmt: skip
  parser.add_argument("--batch-size", type=int, default=16, help="pairs a step")
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--remat", default="nothing_saveable")
  parser.add_argument("--head-block", type=int, default=8192)
  parser.add_argument("--reference", default="cached",
                      choices=["cached", "live", "base"])  # fmt: skip
  parser.add_argument("--peak-tflops", type=float, default=989.0,
                      help="of the device, dense bfloat16")  # fmt: skip
  parser.add_argument("--profile", default="", help="a folder")
  return parser.parse_args()


def _settings(flags: argparse.Namespace, data: pathlib.Path) -> config.Config:
  lora = flags.lora_rank > 0
  return config.build(
    {
      "model": {
        "tokenizer": str(data / "tokenizer"),
        "arch": TINY if flags.preset == "tiny" else {"preset": flags.preset},
        "param_dtype": "bfloat16" if lora else "float32",
        "remat": flags.remat,
        "head_block": flags.head_block,
        "lora": {"rank": flags.lora_rank} if lora else {},
      },
      "reference": {"mode": flags.reference},
      "data": {
        "path": str(data / "rows.jsonl"),
        "batch_size": flags.batch_size,
        "max_length": flags.length,
        "row_length": 2 * flags.length,
        "rows_per_device": flags.rows,
        "max_rejected": 1.0,
      },
      "loss": {"name": "dpo", "beta": 0.1},
      "train": {"steps": flags.steps, "checkpoint_every": 0},
      "sample": {"num_prompts": 0},
    }
  )


def _write_data(length: int, folder: pathlib.Path) -> pathlib.Path:
  """Comparisons of 256 made-up prompts, and a tokenizer.

  A prompt has 1/8 to 3/8 of the tokens of `length`, a response 1/8 to 5/8,
  drawn evenly; a little less, so that none is too long.
  """
  data = simulated.write_corpus(
    folder / "corpus", num_stories=50, num_comparisons=50, seed=0
  )
  lines = (data / "comparisons.jsonl").read_text().splitlines()
  words = " ".join(json.loads(line)["chosen"] for line in lines).split()
  ids = tokenizer.load(data / "tokenizer")(" ".join(words)).input_ids
  draw, words_a_token = random.Random(0), 0.9 * len(words) / len(ids)

  def text(least: int, most: int) -> str:
    tokens = draw.randint(least * length // 8, most * length // 8)
    return " " + " ".join(draw.choices(words, k=int(tokens * words_a_token)))

  with open(data / "rows.jsonl", "w") as out:
    for _ in range(256):
      row = {
        "prompt": text(1, 3),
        "chosen": text(1, 5),
        "rejected": text(1, 5),
      }
      out.write(json.dumps(row) + "\n")
  return data


@contextlib.contextmanager
def _profiled(folder: str) -> Iterator[None]:
  """Traces the two steps after the first few, if there is a folder."""
  write = RunLog.write

  def traced(self: RunLog, step: int, values: Any) -> None:
    if folder and step == WARM_UP:
      jax.profiler.start_trace(folder)
    if folder and step == WARM_UP + 2:
      jax.profiler.stop_trace()
    write(self, step, values)

  RunLog.write = traced  # type: ignore[method-assign]
  yield
  RunLog.write = write  # type: ignore[method-assign]


def _tokens_per_pair(settings: config.Config) -> float:
  """Of a prompt once and its responses, on average."""
  data = prepare(settings.data, settings.data.path, settings.model.tokenizer)
  tokens = data.prompt_lengths.sum() + data.response_lengths.sum()
  return float(tokens) / len(data)


def _summary(
  flags: argparse.Namespace, lines: list[dict[str, float]], tokens: float
) -> dict[str, Any]:
  def median(name: str) -> float:
    return statistics.median(line[name] for line in lines)

  tflops = median("useful_tflops_per_second_per_device")
  stats = jax.local_devices()[0].memory_stats() or {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {
    **vars(flags),
    "device": jax.devices()[0].device_kind,
    "pairs_per_second": median("pairs_per_second"),
    "tokens_per_second": tokens * median("pairs_per_second"),
    "response_tokens_per_second": median("tokens_per_second"),
    "useful_tflops_per_second": tflops,
    "mfu": tflops / flags.peak_tflops,
    "waste_padding": median("waste/padding"),
    # Of the device; where it does not say, of the process.
    "peak_bytes": stats.get("peak_bytes_in_use", resident),
  }


if __name__ == "__main__":
  main()
