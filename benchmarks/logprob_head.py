"""The log-prob head beside the naive one: time, memory, and equal numbers.

  python benchmarks/logprob_head.py [--tokens 8192] [--block 1024 2048 …]

The naive head takes log_softmax of all logits at once. Both run forward and
backward in float32, in turn, `--repeat` times in one process: with a kernel
that is trained, and with one that is frozen. Temporaries are what the compiler
plans beside arguments and results, which are the gradients. Processor seconds
count work that other programs do not take part in; on a busy machine they are
the steadier measure. One JSON object goes to stdout.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import json
import os
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.config import Model
from jaxpref.ops.logprob import token_logp

Head = Callable[..., jax.Array]
OUTPUTS = ("logp", "hidden_grad", "kernel_grad")
KERNELS = {"trained": (0, 1), "frozen": (0,)}  # what is differentiated


def main() -> None:
  flags = _parse()
  heads: dict[str, Head] = {"naive": naive}
  for block in flags.block:
    heads[f"blocks of {block}"] = functools.partial(token_logp, block=block)
  inputs = _inputs(flags.tokens, flags.width, flags.vocab)
  summary = {
    "tokens": flags.tokens,
    "vocab": flags.vocab,
    "width": flags.width,
    "dtype": "float32",
    "device": jax.devices()[0].device_kind,
    "cpus": os.cpu_count(),
    **{
      kernel: compare(heads, KERNELS[kernel], inputs, flags.repeat)
      for kernel in flags.kernel
    },
  }
  print(json.dumps(summary, indent=1))


def naive(hidden: jax.Array, kernel: jax.Array, target: jax.Array) -> jax.Array:
  logp = jax.nn.log_softmax(jnp.einsum("rtd,dv->rtv", hidden, kernel))
  return jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]


def compare(
  heads: dict[str, Head],
  argnums: Sequence[int],
  inputs: tuple[jax.Array, ...],
  repeat: int,
) -> dict[str, Any]:
  """What each head takes, and how far it is from the first."""
  programs = {
    name: _program(head, argnums, inputs) for name, head in heads.items()
  }
  rows: dict[str, dict[str, Any]] = {
    name: {
      "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
      "wall_seconds": [],
      "processor_seconds": [],
    }
    for name, program in programs.items()
  }
  expected: Any = None
  for _ in range(repeat):
    for name, program in programs.items():
      wall, processor = time.perf_counter(), time.process_time()
      out = jax.block_until_ready(program(*inputs))
      rows[name]["wall_seconds"].append(time.perf_counter() - wall)
      rows[name]["processor_seconds"].append(time.process_time() - processor)
      print(name, rows[name], file=sys.stderr)
      expected = expected or out
      rows[name]["apart"] = {
        what: _apart(a, b)
        for what, a, b in zip(OUTPUTS, out, expected, strict=False)
      }
  first = next(iter(rows.values()))
  for row in rows.values():
    for key in ("wall_seconds", "processor_seconds"):
      ratios = [a / b for a, b in zip(row[key], first[key], strict=True)]
      row[f"{key}_ratios"] = [round(ratio, 3) for ratio in ratios]
      row[key] = [round(seconds, 2) for seconds in row[key]]
    row["temporary_ratio"] = row["temporary_bytes"] / first["temporary_bytes"]
  return rows


def _apart(x: jax.Array, expected: jax.Array) -> float:
  """The largest difference, as a part of the largest number."""
  largest = jnp.max(jnp.abs(expected))
  return float(jnp.max(jnp.abs(x - expected)) / largest)


def _program(
  head: Head, argnums: Sequence[int], inputs: tuple[jax.Array, ...]
) -> Any:
  """Log-probs, and gradients of a sum in which each token counts apart."""

  def total(
    hidden: jax.Array, kernel: jax.Array, target: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    logp = head(hidden, kernel, target)
    probe = jnp.sin(jnp.arange(logp.size)).reshape(logp.shape)
    return jnp.sum(probe * logp), logp

  def both(*inputs: jax.Array) -> tuple[jax.Array, ...]:
    gradient = jax.grad(total, argnums=argnums, has_aux=True)
    grads, logp = gradient(*inputs)
    return logp, *grads

  return jax.jit(both).lower(*inputs).compile()


def _inputs(tokens: int, width: int, vocab: int) -> tuple[jax.Array, ...]:
  """Logits of unit variance."""
  keys = jax.random.split(jax.random.key(0), 3)
  return (
    jax.random.normal(keys[0], (1, tokens, width)),
    jax.random.normal(keys[1], (width, vocab)) / width**0.5,
    jax.random.randint(keys[2], (1, tokens), 0, vocab),
  )


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--tokens", type=int, default=8192)
  parser.add_argument("--vocab", type=int, default=151_936)
  parser.add_argument("--width", type=int, default=1024)
  parser.add_argument("--block", type=int, nargs="+",
                      default=[Model().head_block])  # fmt: skip
  parser.add_argument("--kernel", choices=KERNELS, nargs="+",
                      default=list(KERNELS))  # fmt: skip
  parser.add_argument("--repeat", type=int, default=1,
                      help="0 = compile only, for the memory")  # fmt: skip
  return parser.parse_args()


if __name__ == "__main__":
  main()
