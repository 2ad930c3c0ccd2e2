"""Plans of large models on pods, by the TPU's compiler: minutes each."""

import json

import pytest

pytestmark = [
  pytest.mark.certify,
  pytest.mark.timeout(7200),
  pytest.mark.usefixtures("libtpu"),
]
GIB = 2.0**30


def _plan(launch, workdir, name, topology, **overrides):
  process = launch.start(
    workdir,
    {key.replace("__", "."): value for key, value in overrides.items()},
    config=f"configs/{name}.py",
    arguments=[f"--plan={topology}"],
  )
  out, err = process.communicate(timeout=7200)
  assert process.returncode == 0, f"{out}\n{err}"
  return json.loads((workdir / "plan.json").read_text())


@pytest.mark.parametrize(
  ("name", "topology", "bar"),
  [
    ("llama31_8b_dpo", "v5e:8x8", 15.75),
    ("llama31_70b_dpo", "v5p:4x4x8", 95.0),
  ],
)
def test_it_fits(name, topology, bar, launch, tmp_path, certify):
  plan = _plan(launch, tmp_path, name, topology)
  sizes = {key: size / GIB for key, size in plan["bytes_per_chip"].items()}
  state = sizes["parameters"] + sizes["optimizer"]
  certify(
    f"`configs/{name}.py` on {topology}: memory of a chip",
    f"{sizes['total']:.1f} GiB ({state:.1f} of state), compiled in "
    f"{plan['compile_seconds']:.0f} s",
    f"at most {bar:g} GiB",
    plan["fits"] and sizes["total"] <= bar,
  )


def test_more_layers_compile_as_fast(launch, tmp_path, certify):
  """Processor seconds, which other work on the machine changes least."""
  few, many = (
    _plan(
      launch,
      tmp_path / str(layers),
      "llama31_8b_dpo",
      "v5e:8x8",
      model__arch__num_hidden_layers=layers,
    )["compile_cpu_seconds"]
    for layers in (4, 32)
  )
  certify(
    "Compiling a step of 32 layers beside one of 4",
    f"{many:.0f} and {few:.0f} s of processor time, {many / few:.2f} times",
    "at most 1.5 times",
    many <= 1.5 * few,
  )
