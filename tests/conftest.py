"""What every test shares: 8 host devices, strict numerics, real material."""

import os
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Before jax is imported, and inherited by the processes that tests start. The
# lower optimization level halves the seconds spent compiling (44 instead of 79
# for 24 small training steps) and did not slow what runs; what XLA_FLAGS says
# already wins.
for _flag in (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=1",
):
  _given = os.environ.get("XLA_FLAGS", "")
  if _flag.split("=")[0] not in _given:
    os.environ["XLA_FLAGS"] = f"{_given} {_flag}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of real models, data and oracles beside the repository."""
  default = _ROOT.parent / "shared"
  folder = pathlib.Path(os.environ.get("JAXPREF_SHARED", default))
  if not folder.is_dir():
    pytest.skip(
      "no folder of real test material: it belongs in ../shared, or where "
      "JAXPREF_SHARED points"
    )
  return folder
