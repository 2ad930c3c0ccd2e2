"""Plans as users make them, and what they say of steps that can run here."""

import json
import math

import jax
import pytest

from jaxpref import config, sharding
from jaxpref.fit.step import init_state, make_step
from jaxpref.models.build import define, init_params
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.plan.job import Measured, Memory, shard_bytes
from jaxpref.plan.page import as_json, as_text
from jaxpref.plan.predict import predict, what_to_turn
from jaxpref.plan.text import text_job

ARCH = {
  "vocab_size": 64,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
}
# Two micro-batches on four chips, which libtpu 0.0.52 fails to compile without
# the barrier in ops/logprob.py.
DATA = {"max_length": 32, "row_length": 32, "batch_size": 4}
OVERRIDES = {f"model.arch.{key}": value for key, value in ARCH.items()} | {
  f"data.{key}": value for key, value in DATA.items()
}
KEYS = {
  "topology", "chips", "bytes_per_chip", "limit_bytes_per_chip", "fits",
  "flops_per_step", "collectives",
}  # fmt: skip


def _settings(**arch):
  return config.build({"model": {"arch": {**ARCH, **arch}}, "data": DATA})


@pytest.mark.parametrize(
  ("topology", "limit"), [("cpu:8", None), ("v5e:2x2", 15.75)]
)
def test_through_the_command_line(topology, limit, launch, tmp_path, request):
  if topology.startswith("v5e"):
    request.getfixturevalue("libtpu")
  run = launch(tmp_path, OVERRIDES, arguments=[f"--plan={topology}"])
  plan = json.loads((tmp_path / "plan.json").read_text())
  assert plan.keys() >= KEYS
  assert plan["topology"] == topology
  chips = {"cpu:8": 8, "v5e:2x2": 4}[topology]
  assert plan["chips"] == chips
  sizes = plan["bytes_per_chip"]
  total = sizes.pop("total")
  assert total == pytest.approx(sum(sizes.values()))
  assert sizes.keys() >= {
    "parameters", "optimizer", "activations", "temporary"
  }  # fmt: skip
  assert all(size > 0 for size in sizes.values() if limit)
  assert sizes["activations"] > 0
  assert plan["limit_bytes_per_chip"] == (limit and limit * 2**30)
  assert plan["fits"] is True
  assert 0 < plan["flops_per_step"] < plan["computed_flops_per_step"]
  assert plan["collectives"]["all-gather"]["bytes"] > 0
  assert f"Plan for {topology}: {chips} chips" in run.stdout
  assert "Nothing has run" in run.stdout
  assert ("A prediction, not a measurement" in run.stdout) == bool(limit)
  assert run.stderr == ""
  assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_an_unknown_topology(launch, tmp_path):
  run = launch(tmp_path / "new", OVERRIDES, arguments=["--plan=v9:2"], status=2)
  assert run.stderr.startswith("jaxpref: --plan=v9:2: unknown topology. Known:")
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2)])
def test_parameters_and_optimizer_are_those_of_the_real_shards(axes):
  mesh = sharding.make_mesh(*axes)
  job = text_job(_settings(), mesh)
  places = jax.tree.map(lambda x: x.sharding, job.state)
  definition = define(LlamaConfig.from_arch(ARCH), dtype="float32")
  params = init_params(definition, jax.random.key(0), places.params["policy"])
  state = init_state({"policy": params}, job.tx, 0, places)

  def held(tree):
    """Bytes on the first device."""
    first = jax.devices()[0]
    return sum(
      shard.data.nbytes
      for x in jax.tree.leaves(tree)
      for shard in x.addressable_shards
      if shard.device == first
    )

  assert shard_bytes(job.state.params) == held(state.params)
  assert shard_bytes(job.state.opt_state) == held(state.opt_state)


def test_the_step_does_not_grow_with_the_number_of_layers():
  mesh = sharding.make_mesh(1, 8, 1)
  sizes = []
  for layers in (2, 16):
    job = text_job(_settings(num_hidden_layers=layers), mesh)
    places = jax.tree.map(lambda x: x.sharding, job.state)
    step = make_step(job.objective, job.tx, job.schedule, places)
    with jax.set_mesh(mesh):
      lowered = step.lower(job.state, job.frozen, job.batch)
    sizes.append(len(lowered.as_text().splitlines()))
  assert sizes[0] == sizes[1]


def _measured(**given):
  gib = 2.0**30
  memory = Memory(
    parameters=2 * gib, optimizer=4 * gib, inputs=0.0, activations=6 * gib,
    temporary=8 * gib, program=0.0,
  )  # fmt: skip
  values = {
    "chips": 64, "device_kind": "TPU v5 lite", "memory": memory,
    "limit": 15.75 * gib, "fits": False, "useful": 64 * 197e12,
    "computed": 2 * 64 * 197e12, "collectives": {}, "traffic": 0.0,
    "compile_seconds": 1.0, "compile_cpu_seconds": 1.0,
  }  # fmt: skip
  return Measured(**{**values, **given})


def test_what_does_not_fit_says_what_to_turn():
  settings = config.build({"data": {"rows_per_device": 4}})
  mesh = sharding.make_mesh(1, 8, 1)
  measured = _measured()
  first, *others = what_to_turn(settings, measured)
  assert first.startswith("config.data.rows_per_device=2 halves")
  assert any("config.model.lora.rank" in each for each in others)
  job = text_job(_settings(), mesh)
  text = as_text("v5e:8x8", settings, mesh, job, measured)
  assert "20.000  of 15.75: DOES NOT FIT" in text
  assert f"  - {first}" in text
  assert as_json("v5e:8x8", settings, mesh, job, measured)["turn"][0] == first
  # Where most of it is the state, that is what to make smaller.
  memory = Memory(
    parameters=2e10, optimizer=4e10, inputs=0.0, activations=1.0,
    temporary=1.0, program=0.0,
  )  # fmt: skip
  first = what_to_turn(settings, _measured(memory=memory))[0]
  assert first.startswith("config.reference.mode=cached")


def test_a_prediction_is_a_roofline():
  measured = _measured(traffic=819e9 / 2, fits=True)
  prediction = predict(measured)
  assert prediction == pytest.approx((2.0, 0.5, 0.0))
  assert prediction.least == pytest.approx(2.0)
  assert prediction.most == pytest.approx(2.5)
  assert predict(_measured(device_kind="cpu", traffic=1.0)) is None
  assert math.isclose(measured.memory.total, 20 * 2**30)
