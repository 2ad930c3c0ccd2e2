"""The processes that train together, as the environment names them."""

from collections.abc import Mapping, MutableMapping
import dataclasses

import jax
from jax.experimental import multihost_utils

from jaxpref.errors import UserError

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_ORDERED = "--xla_cpu_multi_thread_eigen=false"
_HOW = (
  f"Set {_ADDRESS} to HOST:PORT of the first process, JAX_NUM_PROCESSES, and "
  "JAX_PROCESS_ID from 0 in each of them; or JAX_NUM_PROCESSES=1 to run this "
  "one alone. See launch/README.md."
)


@dataclasses.dataclass(frozen=True)
class Processes:
  """More than one process, of which this is one."""

  told_by: str
  count: int | None  # None: JAX asks the machine, on a Cloud TPU VM
  number: int | None  # this process's, from 0
  # Whether this process takes every device it sees. Else it is JAX that
  # chooses: one for each of the host's processes.
  all_devices: bool = True


def find(environ: Mapping[str, str]) -> Processes | None:
  """What the environment says; None where this process runs alone.

  JAX_NUM_PROCESSES and JAX_PROCESS_ID win. Without them, `mpirun` of Open MPI,
  `srun` of Slurm and GKE's TPU pods tell both. JAX_COORDINATOR_ADDRESS by
  itself says that there are several, and on a Cloud TPU VM JAX finds out how
  many. Nothing is asked of the network here.

  Raises UserError where only a part of this is set, since processes that do
  not know of each other would write to one run folder.
  """
  address = environ.get(_ADDRESS)
  if address is not None and not address.rpartition(":")[2].isdigit():
    raise UserError(f"{_ADDRESS}={address!r} is not HOST:PORT. {_HOW}")
  count = _integer(environ, "JAX_NUM_PROCESSES")
  number = _integer(environ, "JAX_PROCESS_ID")
  if count == 1 and not number:
    return None
  given = count is not None or number is not None
  managed = _open_mpi(environ) or _slurm(environ) or _gke(environ)
  if managed is None or managed.count == 1:
    if address is None and given:
      raise UserError(
        f"JAX_NUM_PROCESSES or JAX_PROCESS_ID is set without {_ADDRESS}. {_HOW}"
      )
    if address is None:
      return None
    if managed is not None and None in (count, number):
      # Each would be a first process: a job step of its own, for example.
      raise UserError(
        f"{_ADDRESS} is set, and {managed.told_by} counts one process. {_HOW}"
      )
    found = Processes(_ADDRESS, count, number)
  else:
    found = dataclasses.replace(
      managed,
      count=managed.count if count is None else count,
      number=managed.number if number is None else number,
    )
  if "JAX_LOCAL_DEVICE_IDS" in environ:  # which JAX reads
    found = dataclasses.replace(found, all_devices=False)
  return _checked(found)


def join(processes: Processes) -> None:
  """Joins the others; before any computation.

  Raises UserError where they cannot be found.
  """
  try:
    jax.distributed.initialize(
      num_processes=processes.count,
      process_id=processes.number,
      # With None, JAX leaves each process of Slurm's and Open MPI's one GPU of
      # its host, even where it is the host's only process.
      local_device_ids=[] if processes.all_devices else None,
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"{processes.told_by} says that there are several processes, and they "
      f"cannot join: {error} {_HOW}"
    ) from error


def order_collectives(
  environ: MutableMapping[str, str], processes: Processes | None
) -> None:
  """Keeps several devices of CPUs from waiting for each other forever.

  With jaxlib 0.10.2 each of them hands the ready parts of its program to a
  pool of threads. Two collectives that do not depend on each other may then
  start in one order here and in another there, and after 40 seconds XLA
  aborts. Without the pool they start in the program's order. What XLA_FLAGS
  says already wins; one device by itself keeps its threads, and TPUs and GPUs
  do not read the flag. To be called before JAX looks for devices.
  """
  flags = environ.get("XLA_FLAGS", "")
  several = (
    processes is not None
    or "JAX_NUM_CPU_DEVICES" in environ
    or "--xla_force_host_platform_device_count" in flags
  )
  if several and _ORDERED.split("=")[0] not in flags:
    environ["XLA_FLAGS"] = f"{flags} {_ORDERED}".strip()


def _checked(found: Processes) -> Processes:
  count, number = found.count, found.number
  if count is not None and number is not None and not 0 <= number < count:
    raise UserError(
      f"Process {number} of {count} ({found.told_by}): numbers go from 0 to "
      f"{count - 1}. {_HOW}"
    )
  return found


def _open_mpi(environ: Mapping[str, str]) -> Processes | None:
  count = _integer(environ, "OMPI_COMM_WORLD_SIZE")
  if count is None:
    return None
  if count > 1 and not {_ADDRESS, "OMPI_MCA_orte_hnp_uri"} & environ.keys():
    # Open MPI 5 does not say where it was started, and JAX looks for that.
    raise UserError(
      f"mpirun started {count} processes, and does not say where the first "
      f"is. {_HOW}"
    )
  return Processes(
    told_by="Open MPI",
    count=count,
    number=_needed(environ, "OMPI_COMM_WORLD_RANK"),
    all_devices=environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1",
  )


def _slurm(environ: Mapping[str, str]) -> Processes | None:
  # Only `srun` sets it: the variables of an allocation are also seen by its
  # batch script, and by a shell in it, which are single processes.
  if "SLURM_STEP_NODELIST" not in environ:
    return None
  # In an interactive step of one task, SLURM_NTASKS is the allocation's.
  count = _integer(environ, "SLURM_STEP_NUM_TASKS")
  if count is None:
    count = _needed(environ, "SLURM_NTASKS")
  if count == 1:
    return Processes("Slurm", 1, 0)
  for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_LOCALID"):
    _needed(environ, name)  # JAX reads them
  return Processes(
    told_by="Slurm",
    count=count,
    number=_needed(environ, "SLURM_PROCID"),
    all_devices=_integer(environ, "SLURM_STEP_NUM_NODES") == count
    or "SLURM_GPUS_PER_TASK" in environ,
  )


def _gke(environ: Mapping[str, str]) -> Processes | None:
  names = environ.get("TPU_PROCESS_ADDRESSES")
  if names is None:
    names = environ.get("TPU_WORKER_HOSTNAMES")
  if names is None:
    return None
  hosts = len(names.split(","))
  slices = _integer(environ, "MEGASCALE_NUM_SLICES") or 1
  if hosts * slices == 1:
    return Processes("GKE", 1, 0)
  number = _needed(environ, "TPU_WORKER_ID")
  if slices > 1:
    number += hosts * _needed(environ, "MEGASCALE_SLICE_ID")
  return Processes("GKE", hosts * slices, number)


def _needed(environ: Mapping[str, str], name: str) -> int:
  value = _integer(environ, name)
  if value is None:
    raise UserError(
      f"This is one of several processes, and {name} is not set. {_HOW}"
    )
  return value


def _integer(environ: Mapping[str, str], name: str) -> int | None:
  text = environ.get(name)
  if not text:
    return None
  if not text.isdecimal():
    raise UserError(f"{name}={text!r} is not a whole number. {_HOW}")
  return int(text)


def say(text: str) -> None:
  """Prints once, not once a process."""
  if jax.process_index() == 0:
    print(text, flush=True)


def wait_for_all() -> None:
  """Until every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("jaxpref")
