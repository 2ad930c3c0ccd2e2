"""What moves simulated images toward red does so from three seeds."""

import json
import time

import numpy as np
import pytest

pytestmark = pytest.mark.certify

SEEDS = range(3)


@pytest.fixture(scope="module")
def base(launch, tmp_path_factory):
  """The model that all of them start from, trained once, and the seconds."""
  workdir = tmp_path_factory.mktemp("shapes") / "base"
  began = time.monotonic()
  launch(workdir, config="configs/shapes_base.py")
  return workdir / "export", time.monotonic() - began


def test_base(base, certify):
  seconds = base[1]
  certify(
    "Shapes, base from nothing with its autoencoder",
    f"{seconds:.0f} s",
    "≤ 300 s",
    seconds <= 300,
  )


@pytest.mark.parametrize(
  ("name", "config", "bar"),
  [
    ("Diffusion-DPO", "diffusion_dpo_shapes", 0.85),
    ("RankDPO", "rank_dpo_shapes", 0.85),
    ("SmPO", "smpo_shapes", 0.85),
    ("MaPO", "mapo_shapes", 0.8),
  ],
)
def test_samples_become_redder(
  name, config, bar, base, launch, certify, tmp_path
):
  """Of images from the same noise, and by the same measure as the pairs."""
  found = {"samples/preferred": [], "samples/red": []}
  before, seconds, grown = [], [], []
  for seed in SEEDS:
    workdir = tmp_path / str(seed)
    began = time.monotonic()
    launch(
      workdir,
      {
        "model.path": base[0],
        "train.seed": seed,
        "data.seed": seed,
        "sample.seed": seed,
      },
      config=f"configs/{config}.py",
    )
    seconds.append(time.monotonic() - began)
    text = (workdir / "metrics.jsonl").read_text()
    first, *_, last = [json.loads(line) for line in text.splitlines()]
    assert first["samples/preferred"] == 0.5
    before.append(first["samples/red"])
    grown.append(last["eval/error"] / first["eval/error"])
    for key, values in found.items():
      values.append(last[key])
  rates = found["samples/preferred"]
  certify(
    f"Shapes, {name}, samples redder than before, of {len(SEEDS)} seeds",
    f"{np.mean(rates):.3f} ± {np.std(rates, ddof=1):.3f}; redness "
    f"{np.mean(before):.3f} to {np.mean(found['samples/red']):.3f}; "
    f"{max(seconds):.0f} s",
    f"mean ≥ {bar}, ≤ 240 s each",
    np.mean(rates) >= bar and max(seconds) <= 240,
  )
  # What is red and nothing else would pass the above.
  certify(
    f"Shapes, {name}, held-out denoising error, after / before",
    f"≤ {max(grown):.2f}",
    "≤ 2",
    max(grown) <= 2.0,
  )
