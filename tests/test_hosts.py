"""Which processes a run has, by made-up environments."""

import jax
import pytest

from jaxpref import hosts
from jaxpref.errors import UserError

ADDRESS = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
# What `srun --nodes=2 --ntasks=2` sets in the second task.
SLURM = {
  "SLURM_JOB_ID": "123",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
  "SLURM_STEP_NODELIST": "node[001-002]",
  "SLURM_STEP_NUM_TASKS": "2",
  "SLURM_STEP_NUM_NODES": "2",
}
ONE_TASK = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
# `sbatch --ntasks=2`, before any `srun`.
BATCH_SCRIPT = {
  "SLURM_JOB_ID": "123",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
  "SLURM_JOB_NODELIST": "node[001-002]",
}
OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
GKE = {"TPU_WORKER_HOSTNAMES": "a-0,a-1,a-2,a-3", "TPU_WORKER_ID": "2"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}


def _plain(count, number):
  return ADDRESS | {"JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": number}


@pytest.mark.parametrize(
  "environ",
  [
    {},
    {"SLURM_JOB_ID": "123"},
    BATCH_SCRIPT,
    SLURM | ONE_TASK,  # an interactive step of a larger allocation
    SLURM | {"JAX_NUM_PROCESSES": "1"},  # many runs, one a task
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    {"TPU_WORKER_HOSTNAMES": ""},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    _plain("1", "0"),
  ],
  ids=range(10),
)
def test_alone(environ):
  assert hosts.find(environ) is None


@pytest.mark.parametrize(
  ("environ", "count", "number", "all_devices"),
  [
    (ADDRESS, None, None, True),
    (_plain("2", "1"), 2, 1, True),
    (_plain("2", "1") | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, 2, 1, False),
    (SLURM, 2, 1, True),
    (SLURM | ADDRESS, 2, 1, True),
    (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0"}, 2, 1, False),
    # Two tasks of one node: a GPU each, if Slurm has not shared them out.
    (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, 2, 1, False),
    (SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_GPUS_PER_TASK": "1"},
     2, 1, True),
    # Slurm on some clusters says less.
    ({k: x for k, x in SLURM.items() if "_NUM_" not in k}, 2, 1, False),
    # Two steps of one task each: only the plain variables know of both.
    (SLURM | ONE_TASK | _plain("2", "1"), 2, 1, True),
    (BATCH_SCRIPT | _plain("2", "0"), 2, 0, True),
    (OPEN_MPI | ORTE, 4, 3, False),
    (OPEN_MPI | ORTE | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, 4, 3, True),
    (OPEN_MPI | ADDRESS, 4, 3, False),
    (OPEN_MPI | ORTE | BATCH_SCRIPT, 4, 3, False),  # mpirun in a Slurm job
    (GKE, 4, 2, True),
    (GKE | SLICES, 8, 6, True),
    (GKE | {"TPU_PROCESS_ADDRESSES": "a:1,b:1,c:1"}, 3, 2, True),
  ],
  ids=range(18),
)  # fmt: skip
def test_several(environ, count, number, all_devices):
  found = hosts.find(environ)
  assert (found.count, found.number) == (count, number)
  assert found.all_devices == all_devices


@pytest.mark.parametrize(
  ("environ", "named"),
  [
    ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "without JAX_COORDI"),
    ({"JAX_PROCESS_ID": "1"}, "without JAX_COORDI"),
    (_plain("two", "0"), "JAX_NUM_PROCESSES='two'"),
    (_plain("2", "-1"), "JAX_PROCESS_ID='-1'"),
    (_plain("2", "2"), "Process 2 of 2"),
    (_plain("1", "1"), "Process 1 of 1"),
    (_plain("2", "0") | {"JAX_COORDINATOR_ADDRESS": "node"}, "'node' is not"),
    (SLURM | ONE_TASK | ADDRESS, "Slurm counts one process"),
    (SLURM | ONE_TASK | ADDRESS | {"JAX_NUM_PROCESSES": "2"}, "Slurm counts"),
    (SLURM | {"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
    (SLURM | {"SLURM_LOCALID": ""}, "SLURM_LOCALID is not set"),
    (SLURM | {"SLURM_PROCID": "2"}, "Process 2 of 2 (Slurm)"),
    (OPEN_MPI, "mpirun started 4 processes"),
    (GKE | {"TPU_WORKER_ID": ""}, "TPU_WORKER_ID is not set"),
    (GKE | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_SLICE_ID is not set"),
  ],
  ids=range(15),
)
def test_half_set(environ, named):
  with pytest.raises(UserError) as raised:
    hosts.find(environ)
  assert named in str(raised.value)
  assert "JAX_COORDINATOR_ADDRESS to HOST:PORT" in str(raised.value)
  assert "JAX_NUM_PROCESSES=1" in str(raised.value)


def test_jax_reads_the_same_from_slurm(monkeypatch):
  """Names of JAX's own that we rely on: it must find the first host there."""
  given = {}
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)

  def stop(address, count, number, devices, *_):
    given.update(count=count, number=number, devices=devices)
    raise ValueError("no further")

  detect = jax._src.clusters.ClusterEnv
  monkeypatch.setattr(detect, "auto_detect_unset_distributed_params", stop)
  # Tests before this one may have used JAX, after which nothing can join.
  uninitialized = lambda: False
  bridge = jax._src.xla_bridge
  monkeypatch.setattr(bridge, "backends_are_initialized", uninitialized)
  with pytest.raises(UserError, match=r"Slurm says .* no further .*README"):
    hosts.join(hosts.find(SLURM))
  assert given == {"count": 2, "number": 1, "devices": []}
  monkeypatch.undo()


@pytest.mark.parametrize("environ", [SLURM, OPEN_MPI | ORTE], ids=range(2))
def test_jax_knows_the_same_variables(monkeypatch, environ):
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  found = hosts.find(environ)
  address, count, number, devices = (
    jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, [], None, 1
    )
  )
  host, port = address.split(":")
  assert host in ("node001", "10.96.0.1")
  assert int(port) > 1024
  assert (count, number) == (found.count, found.number)
  assert devices == []  # all


def test_order_of_collectives():
  count = "--xla_force_host_platform_device_count=8"
  flag = "--xla_cpu_multi_thread_eigen"
  several = hosts.Processes("a test", 2, 0)

  def flags(environ, processes=None):
    hosts.order_collectives(environ, processes)
    return environ.get("XLA_FLAGS")

  assert flags({}) is None
  assert flags({"XLA_FLAGS": "--xla_dump_to=x"}) == "--xla_dump_to=x"
  assert flags({}, several) == f"{flag}=false"
  assert flags({"JAX_NUM_CPU_DEVICES": "2"}) == f"{flag}=false"
  assert flags({"XLA_FLAGS": count}) == f"{count} {flag}=false"
  # The user's own word stays.
  given = f"{count} {flag}=true"
  assert flags({"XLA_FLAGS": given}) == given
