"""Compiles a training step for devices that need not be there, and measures."""

from collections.abc import Mapping
import contextlib
import dataclasses
import math
import re
import time
import types
from typing import Any, NamedTuple

import jax
from jax.dtypes import itemsize_bits
import optax

from jaxpref import chips
from jaxpref.fit.objectives import Objective
from jaxpref.fit.step import TrainState, make_step
from jaxpref.plan.hlo import Collective, Program
from jaxpref.plan.program import computed_flops, kept_bytes
from jaxpref.types import Params


class Job(NamedTuple):
  """A step and what it works on, as shapes that know where they lie."""

  objective: Objective
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  state: TrainState
  frozen: Mapping[str, Params]
  batch: Any  # micro-batches on the first axis
  useful_flops: float  # of a step, over all chips
  assumes: tuple[str, ...]  # sentences
  compiler_options: Mapping[str, str] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a chip, as the compiler lays them out."""

  parameters: float  # the trained ones and the frozen ones
  optimizer: float
  inputs: float  # the batch, and what layouts pad
  activations: float  # kept from the forward to the backward pass
  temporary: float  # everything else that comes and goes
  program: float

  @property
  def total(self) -> float:
    return math.fsum(dataclasses.astuple(self))


class Measured(NamedTuple):
  """A compiled step. Only `useful` and `computed` are sums over the chips."""

  chips: int
  device_kind: str
  memory: Memory
  limit: float | None  # bytes that a program may take; None where not known
  fits: bool
  useful: float  # operations that the step needs
  computed: float  # with pads, and what is computed again
  collectives: Mapping[str, Collective]
  traffic: float  # bytes through the memory
  compile_seconds: float
  compile_cpu_seconds: float  # of all threads


def measure(job: Job, mesh: jax.sharding.Mesh) -> Measured:
  """Compiles the step that training would run on this mesh.

  Where it takes more memory than a chip has, a TPU's compiler gives up, and
  what it would have sent is not known.
  """
  device = mesh.devices.flat[0]
  chip = chips.find_chip(device.device_kind)
  places = jax.tree.map(lambda x: x.sharding, job.state)
  step: Any = make_step(job.objective, job.tx, job.schedule, places)
  began, used = time.perf_counter(), time.process_time()
  with jax.set_mesh(mesh):
    traced = step.trace(job.state, job.frozen, job.batch)
    kept = _kept(job) / (mesh.shape["data"] * mesh.shape["fsdp"])
    program, fits = None, False
    limit = chip and chip.memory_bytes
    try:
      options = dict(job.compiler_options)
      compiled = traced.lower().compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
      total, limit = read_exhausted(error)
      arguments = shard_bytes((job.state, job.frozen, job.batch))
      sizes = _Sizes(arguments, max(0.0, total - arguments), 0.0)
    else:
      sizes, fits = _sizes(compiled), True
      # jaxlib 0.10.2 cannot read some asynchronous operations of libtpu 0.0.52;
      # then what the chips send stays unknown.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        program = Program(compiled.as_text())
  memory = _memory(job, sizes, kept)
  return Measured(
    chips=mesh.size,
    device_kind=device.device_kind,
    memory=memory,
    limit=limit,
    fits=fits and not (limit and memory.total > limit),
    useful=job.useful_flops,
    computed=computed_flops(traced.jaxpr.jaxpr),
    collectives=program.collectives() if program else {},
    traffic=program.traffic() if program else 0.0,
    compile_seconds=time.perf_counter() - began,
    compile_cpu_seconds=time.process_time() - used,
  )


def shard_bytes(shapes: Any) -> int:
  """What one device holds of arrays that know where they lie."""
  bits = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * itemsize_bits(x.dtype)
    for x in jax.tree.leaves(shapes)
  )
  return -(-bits // 8)


class _Sizes(NamedTuple):
  """As the compiler tells them, in bytes of a chip."""

  arguments: float
  temporary: float  # and what it returns that is no longer an argument
  program: float


def _sizes(compiled: Any) -> _Sizes:
  told = compiled.memory_analysis()
  fresh = told.output_size_in_bytes - told.alias_size_in_bytes
  return _Sizes(
    float(told.argument_size_in_bytes),
    float(told.temp_size_in_bytes + fresh),
    float(told.generated_code_size_in_bytes),
  )


def read_exhausted(
  error: jax.errors.JaxRuntimeError,
) -> tuple[float, float]:
  """Bytes that a program would have taken, and that there are, of an error."""
  match = _EXHAUSTED.search(str(error))
  if match is None:
    raise error
  total, unit, limit, unit_of_limit = match.groups()
  return float(total) * _UNITS[unit], float(limit) * _UNITS[unit_of_limit]


_EXHAUSTED = re.compile(
  r"([\d.]+)([KMGT])\)? (?:exceeds available HBM \(|of )([\d.]+)([KMGT])"
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def _memory(job: Job, sizes: _Sizes, kept: float) -> Memory:
  params = shard_bytes((job.state.params, job.frozen))
  optimizer = shard_bytes(job.state.opt_state)
  activations = min(kept, sizes.temporary)
  return Memory(
    parameters=float(params),
    optimizer=float(optimizer),
    inputs=max(0.0, sizes.arguments - params - optimizer),
    activations=activations,
    temporary=sizes.temporary - activations,
    program=sizes.program,
  )


def _kept(job: Job) -> float:
  """Bytes that a micro-batch keeps for its backward pass, on all devices."""

  def loss(params: Any, frozen: Any, kept: Any, part: Any, key: Any) -> Any:
    key = jax.random.wrap_key_data(key)
    terms = job.objective(params, frozen, kept, part, key)[0]
    return sum(term.total for term in terms.values())

  part = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), job.batch
  )
  state = job.state
  return kept_bytes(
    loss, state.params, job.frozen, state.objective, part, state.key
  )
