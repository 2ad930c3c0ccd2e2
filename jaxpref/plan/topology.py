"""Devices that are not there, to compile for."""

from collections.abc import Mapping, Sequence
import functools
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from jaxpref.errors import UserError

_TPUS = {"v5e": "v5e:8x8", "v5p": "v5p:4x4x8", "v6e": "v6e:16x16"}
_KNOWN = (
  "v5e:ROWSxCOLUMNS and v6e:ROWSxCOLUMNS (v5e:8x8 is 64 chips), v5p:XxYxZ "
  "(v5p:4x4x8 is 128 chips), and cpu:COUNT (cpu:8)"
)
# Before libtpu is loaded. It would look for the machine's TPU, let one process
# at a time load it, for the TPU's sake, and write to stderr and to files in
# /tmp; there is no TPU here, and what is set already wins.
_ENVIRONMENT: Mapping[str, str] = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_LOG_DIR": "disabled",
}


def stay_on_cpu(topology: str) -> None:
  """Keeps this process off the machine's accelerators; before jax starts."""
  jax.config.update("jax_platforms", "cpu")
  if match := _CPU.fullmatch(topology):
    jax.config.update("jax_num_cpu_devices", int(match[1]))
  else:  # a program for devices that are not there cannot be read back
    jax.config.update("jax_enable_compilation_cache", False)


def find_devices(topology: str) -> Sequence[jax.Device]:
  """The devices of a topology such as 'v5e:8x8'; nothing can run on them.

  Those of 'cpu:8' are host devices.

  Raises UserError for a topology that there is not, or that the machine
  cannot compile for.
  """
  if match := _CPU.fullmatch(topology):
    return _host_devices(int(match[1]))
  kind, _, sizes = topology.partition(":")
  if kind not in _TPUS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", sizes):
    raise UserError(f"--plan={topology}: unknown topology. Known: {_KNOWN}.")
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"--plan={topology} needs the TPU's compiler, the package libtpu, which "
      "is not installed. Install jaxpref with its extra `plan`: pip install -c "
      "constraints.txt -e '.[plan]'. --plan=cpu:8 needs none."
    )
  return _tpu_devices(topology)


_CPU = re.compile(r"cpu:([1-9]\d*)")


def _host_devices(count: int) -> Sequence[jax.Device]:
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise UserError(
      f"--plan=cpu:{count}: this process has {len(devices)} host devices. "
      "Plan by the command line, which makes as many as it needs."
    )
  return devices[:count]


@functools.cache
def _tpu_devices(topology: str) -> Sequence[jax.Device]:
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(topology, platform="tpu")
  except jax.errors.JaxRuntimeError as error:
    example = _TPUS[topology.partition(":")[0]]
    raise UserError(
      f"--plan={topology}: the TPU's compiler refuses it: {_first(error)}. "
      f"Write it for example as {example}; known: {_KNOWN}."
    ) from error
  return tuple(found.devices)


def _first(error: Exception) -> str:
  return str(error).splitlines()[0].rstrip(".")
