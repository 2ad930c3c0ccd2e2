"""Topologies that there are, and those that there are not."""

import jax
import jax.numpy as jnp
import pytest

from jaxpref import chips
from jaxpref.errors import UserError
from jaxpref.plan import topology
from jaxpref.plan.topology import find_devices


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
  ("name", "count", "gib"),
  [("v5e:8x8", 64, 15.75), ("v5p:4x4x8", 128, 95.73), ("v6e:4x4", 16, 31.24)],
)
def test_tpus_that_are_not_there(name, count, gib):
  devices = find_devices(name)
  assert len(devices) == count
  assert {device.platform for device in devices} == {"tpu"}
  chip = chips.find_chip(devices[0].device_kind)
  assert chip.memory_bytes == gib * 2**30
  assert name.startswith(chip.kinds[-1].removeprefix("TPU ")[:3])


def test_host_devices():
  assert find_devices("cpu:4") == jax.devices()[:4]
  with pytest.raises(UserError, match="this process has 8 host devices"):
    find_devices("cpu:9")


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:8*8", "cpu", "tpu:8"])
def test_names_that_mean_nothing(name):
  with pytest.raises(UserError, match=r"unknown topology. Known: v5e:ROWS"):
    find_devices(name)


@pytest.mark.usefixtures("libtpu")
def test_a_shape_that_the_compiler_refuses():
  with pytest.raises(UserError, match=r"refuses it.*for example as v5e:8x8"):
    find_devices("v5e:3x3")


def test_without_libtpu(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(UserError, match=r"libtpu, which is not installed"):
    find_devices("v5e:8x8")


def test_known_chips():
  assert chips.find_chip("NVIDIA H100 80GB HBM3").peak_flops == 989e12
  assert chips.find_chip("NVIDIA H100 PCIe").peak_flops == 756e12
  assert chips.find_chip("NVIDIA A100-SXM4-80GB").memory_bytes == 80e9
  assert chips.find_chip("TPU v5 lite").peak_flops == 197e12
  assert chips.find_chip("TPU v5").peak_flops == 459e12
  assert chips.find_chip("cpu") is None


@pytest.mark.usefixtures("libtpu")
def test_what_the_compiler_says_where_memory_does_not_suffice():
  from jaxpref.plan.job import read_exhausted

  device = find_devices("v5e:1x1")[0]
  place = jax.sharding.SingleDeviceSharding(device)
  x = jax.ShapeDtypeStruct((9 * 2**29, 2), jnp.bfloat16, sharding=place)
  lowered = jax.jit(jnp.sum, out_shardings=place).lower(x)
  with pytest.raises(jax.errors.JaxRuntimeError) as error:
    lowered.compile()
  limit = chips.find_chip(device.device_kind).memory_bytes
  assert read_exhausted(error.value) == (18 * 2.0**30, limit)
