"""A plan for people, and the same for programs."""

from collections.abc import Iterable
import importlib.metadata
from typing import Any

import jax

from jaxpref import chips, config
from jaxpref.plan.job import Job, Measured
from jaxpref.plan.predict import predict, what_to_turn

_GIB = 2.0**30


def as_json(
  topology: str,
  settings: config.Config,
  mesh: jax.sharding.Mesh,
  job: Job,
  measured: Measured,
) -> dict[str, Any]:
  """What `plan.json` holds; bytes, seconds and operations as plain numbers.

  `bytes_per_chip`, `collectives` and `traffic_bytes_per_chip` are of one chip,
  `flops_per_step` (useful) and `computed_flops_per_step` of all together.
  """
  memory = measured.memory
  prediction = predict(measured)
  return {
    "topology": topology,
    "chips": measured.chips,
    "device_kind": measured.device_kind,
    "mesh": dict(mesh.shape),
    "bytes_per_chip": {**vars(memory), "total": memory.total},
    "limit_bytes_per_chip": measured.limit,
    "fits": measured.fits,
    "turn": [] if measured.fits else what_to_turn(settings, measured),
    "flops_per_step": measured.useful,
    "computed_flops_per_step": measured.computed,
    "traffic_bytes_per_chip": measured.traffic,
    "collectives": {
      kind: each._asdict() for kind, each in measured.collectives.items()
    },
    "predicted_seconds": prediction
    and {
      **prediction._asdict(),
      "least": prediction.least,
      "most": prediction.most,
    },
    "assumes": list(job.assumes),
    "compiler_options": dict(job.compiler_options),
    "compile_seconds": measured.compile_seconds,
    "compile_cpu_seconds": measured.compile_cpu_seconds,
    "versions": {name: _version(name) for name in ("jax", "libtpu")},
  }


def as_text(
  topology: str,
  settings: config.Config,
  mesh: jax.sharding.Mesh,
  job: Job,
  measured: Measured,
) -> str:
  """What the command prints."""
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
  lines = [
    f"Plan for {topology}: {measured.chips} chips ({measured.device_kind}), "
    f"mesh {axes}.",
    *job.assumes,
    f"Compiled in {measured.compile_seconds:.0f} s. Nothing has run.",
    "",
    *_memory(measured),
    "",
    *_work(measured),
  ]
  if not measured.fits:
    turns = what_to_turn(settings, measured)
    lines += ["", "To make it fit, the cheapest first:"]
    lines += [f"  - {turn}" for turn in turns]
  return "\n".join(lines)


def _memory(measured: Measured) -> Iterable[str]:
  yield f"{'Memory of a chip':<34}{'GiB':>10}"
  for name, size in vars(measured.memory).items():
    yield f"  {_NAMES.get(name, name):<32}{size / _GIB:>10.3f}"
  total, limit = measured.memory.total, measured.limit
  told = "the limit is not known"
  if limit:
    told = f"of {limit / _GIB:.2f}: " + (
      "fits" if measured.fits else "DOES NOT FIT"
    )
  yield f"  {'total':<32}{total / _GIB:>10.3f}  {told}"


def _work(measured: Measured) -> Iterable[str]:
  # Useful counts a gradient of every layer's inputs; the first needs none.
  share = min(1.0, measured.useful / measured.computed)
  yield (
    f"Useful work of a step: {_si(measured.useful)}FLOP. Computed: "
    f"{_si(measured.computed)}FLOP, of which {share:.0%} is useful; the rest "
    "is padding, masked attention and what is computed again to save memory."
  )
  if not measured.traffic:
    return
  yield ""
  yield f"{'A chip sends in a step':<34}{'times':>10}{'GiB':>10}"
  for kind, each in measured.collectives.items():
    yield f"  {kind:<32}{each.times:>10.0f}{each.bytes / _GIB:>10.3f}"
  prediction, chip = predict(measured), chips.find_chip(measured.device_kind)
  if prediction is None or chip is None:
    return
  fast, slow = (
    measured.useful / measured.chips / chip.peak_flops / seconds
    for seconds in (prediction.least, prediction.most)
  )
  yield ""
  yield (
    f"A prediction, not a measurement: a step takes {prediction.least:.3g} s "
    f"if everything overlaps, {prediction.most:.3g} s if nothing does, and "
    f"longer where a part runs below the chip's peak. Useful MFU is then "
    f"{fast:.0%} or {slow:.0%}."
  )
  for name, seconds, peak, unit in (
    ("arithmetic", prediction.arithmetic, chip.peak_flops, "FLOP/s"),
    ("memory", prediction.memory, chip.memory_bandwidth, "B/s"),
    ("links", prediction.links, chip.link_bandwidth, "B/s"),
  ):
    yield f"  {name:<12}{seconds:>8.3g} s at {_si(peak)}{unit}"


_NAMES = {
  "inputs": "inputs (batch, padded layouts)",
  "activations": "activations kept for backward",
  "temporary": "everything else for a while",
  "program": "the program",
}


def _si(value: float) -> str:
  for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
    if value >= unit:
      return f"{value / unit:.3g} {name}"
  return f"{value:.3g} "


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None
