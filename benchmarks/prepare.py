"""Preparation of text: rows a second beside TRL's, and memory as data grows.

    python benchmarks/prepare.py --data FILE --tokenizer FOLDER [--rows 50000]
    python benchmarks/prepare.py --memory 50000 1000000 --tokenizer FOLDER

FILE is HH-RLHF's (chosen and rejected, JSON lines, .gz or not); it is repeated
to as many rows. TRL's side loads the rows by `datasets` and runs the
`_prepare_dataset` of its DPOTrainer, once in one process and once in as many as
there are cores; the faster counts. Ours is `prepare`, as every run does it.
Both write what they made to the disk. Of ours the seconds within the tokenizer,
which runs beside all else, are told too, and those of the processor.

With --memory, ours prepares that many made-up pairs and its largest resident
memory is told. Each measurement is a process of its own. One JSON object goes
to stdout.
"""

import argparse
from collections.abc import Iterator
import gzip
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time
from typing import Any

from sides import in_process

MAX_LENGTH = 1024


def main() -> None:
  flags = _parse()
  if flags.side:
    print(json.dumps(SIDES[flags.side](flags)))
    return
  with tempfile.TemporaryDirectory() as folder:
    flags.folder = folder
    found = _memory(flags) if flags.memory else _against_trl(flags)
  print(json.dumps(found, indent=1))


def _against_trl(flags: argparse.Namespace) -> dict[str, Any]:
  rows = pathlib.Path(flags.folder) / "rows.jsonl"
  _write(
    rows, itertools.islice(itertools.cycle(_lines(flags.data)), flags.rows)
  )
  found: dict[str, Any] = {"rows": flags.rows}
  for processes in sorted({1, os.cpu_count() or 1}):
    flags.processes = processes
    found[f"TRL, {processes} processes"] = _in_process("trl", flags)
  best = min(each["seconds"] for each in list(found.values())[1:])
  found["jaxpref"] = _in_process("jaxpref", flags)
  found["ours by theirs"] = round(best / found["jaxpref"]["seconds"], 2)
  return found


def _memory(flags: argparse.Namespace) -> dict[str, Any]:
  found = {}
  for count in flags.memory:
    rows = pathlib.Path(flags.folder) / "rows.jsonl"
    _write(rows, map(_made_up, range(count)))
    found[count] = _in_process("jaxpref", flags)
  return found


def run_jaxpref(flags: argparse.Namespace) -> dict[str, Any]:
  """What `stages=('prepare',)` does, timed after the imports."""
  from jaxpref import config
  from jaxpref.data.prepared import prepare
  from jaxpref.data.tokenizer import Rules, load

  load(flags.tokenizer)  # imports transformers, as the other side has
  encode, inside = Rules.encode, 0.0

  def timed(self: Rules, texts: list[str]) -> list[Any]:
    nonlocal inside
    began = time.perf_counter()
    encodings = encode(self, texts)
    inside += time.perf_counter() - began
    return encodings

  Rules.encode = timed  # type: ignore[method-assign]
  folder = pathlib.Path(flags.folder)
  cache = pathlib.Path(tempfile.mkdtemp(dir=folder))
  began, used = time.perf_counter(), time.process_time()
  prepared = prepare(
    config.Data(max_length=MAX_LENGTH),
    str(folder / "rows.jsonl"),
    flags.tokenizer,
    cache,
  )
  seconds = time.perf_counter() - began
  return {
    "seconds": round(seconds, 2),
    "processor seconds": round(time.process_time() - used, 2),
    "seconds in the tokenizer": round(inside, 2),
    "examples": prepared.stats["examples"],
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
  }


def run_trl(flags: argparse.Namespace) -> dict[str, Any]:
  """What DPOTrainer does with a data set, timed after the imports."""
  from types import SimpleNamespace

  import datasets
  import transformers
  import trl

  datasets.disable_progress_bars()
  tokenizer = transformers.AutoTokenizer.from_pretrained(flags.tokenizer)
  args = SimpleNamespace(
    dataset_num_proc=flags.processes,
    max_length=MAX_LENGTH,
    truncation_mode="keep_start",
  )
  began = time.perf_counter()
  rows = datasets.load_dataset(
    "json",
    data_files=str(pathlib.Path(flags.folder) / "rows.jsonl"),
    cache_dir=tempfile.mkdtemp(dir=flags.folder),
    split="train",
  )
  prepared = trl.DPOTrainer._prepare_dataset(
    SimpleNamespace(_tokenizer=tokenizer), rows, tokenizer, args, "train"
  )
  seconds = time.perf_counter() - began
  return {
    "seconds": round(seconds, 2),
    "examples": len(prepared),
    "version": trl.__version__,
  }


SIDES = {"jaxpref": run_jaxpref, "trl": run_trl}


def _lines(path: str) -> list[str]:
  with (gzip.open if path.endswith(".gz") else open)(path, "rt") as lines:
    return [line for line in lines if line.strip()]


def _made_up(number: int) -> str:
  row = {
    "prompt": f"What comes after {number}?",
    "chosen": f"After {number} comes {number + 1}.",
    "rejected": f"I do not know what comes after {number}.",
  }
  return json.dumps(row) + "\n"


def _write(path: pathlib.Path, lines: Iterator[str]) -> None:
  with open(path, "w") as file:
    file.writelines(lines)


def _in_process(side: str, flags: argparse.Namespace) -> dict[str, Any]:
  return in_process(__file__, side, flags, ("tokenizer", "folder", "processes"))


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", help="HH-RLHF's rows")
  parser.add_argument("--tokenizer", required=True)
  parser.add_argument("--rows", type=int, default=50_000)
  parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS")
  parser.add_argument("--side", default="", help=argparse.SUPPRESS)
  parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
  parser.add_argument(
    "--processes", type=int, default=1, help=argparse.SUPPRESS
  )
  flags = parser.parse_args()
  if not (flags.side or flags.data or flags.memory):
    parser.error("give --data or --memory")
  return flags


if __name__ == "__main__":
  main()
