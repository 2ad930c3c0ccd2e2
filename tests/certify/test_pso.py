"""PSO makes 4-step samples redder and keeps them sharp, from three seeds."""

import json
import resource

import numpy as np
from PIL import Image
import pytest

from jaxpref.data.shapes import draw_shapes
from jaxpref.score.raters import frechet_distance, sharpness

pytestmark = [pytest.mark.certify, pytest.mark.timeout(2400)]

SEEDS = range(3)


@pytest.fixture(scope="module")
def student(launch, tmp_path_factory):
  """Samples of the student and of its teacher, in four steps each."""
  workdir = tmp_path_factory.mktemp("student")
  launch(workdir / "student", config="configs/shapes_student.py")
  found = launch.cache.glob("shapes/*/export")
  given = {"model.path": next(found), "stages": "('sample',)"}
  given |= {"sample.prompts": workdir / "student" / "prompts.txt"}
  given |= {"sample.per_prompt": 16, "sample.guidance": 1.0}
  for sampler in ("euler_ancestral", "lcm"):
    launch(
      workdir / sampler,
      {**given, "sample.steps": 4, "sample.sampler": sampler},
      config="configs/sample_sdxl.py",
    )
  return workdir


def test_student(student, certify):
  """Of colours in 16 parts of each image, 96 samples and 2,000 images."""
  real = _colours(np.stack([x.pixels for x in draw_shapes(2000, seed=5)]))
  apart = {
    name: frechet_distance(_colours(_images(student / name / "samples")), real)
    for name in ("student", "euler_ancestral", "lcm")
  }
  base = min(apart["euler_ancestral"], apart["lcm"])
  certify(
    "Shapes, student, Fréchet distance of 4-step samples to real images",
    f"{apart['student']:.3f}; the base's best {base:.3f} (of Euler ancestral "
    "and LCM)",
    "≤ 0.75 of the base's",
    apart["student"] <= 0.75 * base,
  )


@pytest.fixture(scope="module")
def plain(student, launch, tmp_path_factory):
  """Of plain fine-tuning of the student on the redder image of each pair."""
  folder = tmp_path_factory.mktemp("plain")
  given = {"loss.name": "denoising"}
  return [_train(launch, folder, "pso_shapes", seed, given) for seed in SEEDS]


@pytest.mark.parametrize(
  ("name", "config"),
  [("PSO", "pso_shapes"), ("PSO offline", "pso_offline_shapes")],
)
def test_pso(name, config, plain, launch, certify, tmp_path):
  """Of images from the same noise, each sampled in four steps."""
  runs = [_train(launch, tmp_path, config, seed, {}) for seed in SEEDS]
  mean, other = (
    {key: np.mean([run[key] for run in each]) for key in runs[0]}
    for each in (runs, plain)
  )
  seconds = max(run["seconds"] for run in runs)
  certify(
    f"Shapes, {name}, 4-step samples redder than before",
    f"{_spread(runs, 'preferred')}; redness {mean['red_before']:.3f} to "
    f"{mean['red']:.3f}, by plain fine-tuning {other['red']:.3f}; "
    f"{seconds:.0f} s of processor; seeds: {len(SEEDS)}",
    "mean ≥ 0.85, redness + 0.04 and above fine-tuning's, ≤ 240 s each",
    mean["preferred"] >= 0.85
    and mean["red"] >= mean["red_before"] + 0.04
    and mean["red"] > other["red"]
    and seconds <= 240,
  )
  certify(
    f"Shapes, {name}, sharpness of 4-step samples",
    f"{mean['sharp_before']:.3f} to {_spread(runs, 'sharp')}, by plain "
    f"fine-tuning {_spread(plain, 'sharp')}; seeds: {len(SEEDS)}",
    "≥ 0.98 of before, and above fine-tuning's",
    mean["sharp"] >= 0.98 * mean["sharp_before"]
    and mean["sharp"] > other["sharp"],
  )


def _train(launch, folder, config, seed, given):
  """Runs a config; what its samples are like before and after."""
  workdir = folder / str(seed)
  began = _processor_seconds()
  seeds = {f"{section}.seed": seed for section in ("train", "data", "sample")}
  launch(workdir, seeds | given, config=f"configs/{config}.py")
  text = (workdir / "metrics.jsonl").read_text()
  first, *_, last = [json.loads(line) for line in text.splitlines()]
  folders = sorted((workdir / "samples").glob("step_*"))
  start, end = (float(sharpness(_images(each)).mean()) for each in folders)
  return {
    "preferred": last["samples/preferred"],
    "red_before": first["samples/red"],
    "red": last["samples/red"],
    "sharp_before": start,
    "sharp": end,
    "seconds": _processor_seconds() - began,
  }


def _processor_seconds():
  """Of all runs so far, which other work on the machine does not lengthen."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _spread(runs, key):
  values = [run[key] for run in runs]
  return f"{np.mean(values):.3f} ({min(values):.3f} … {max(values):.3f})"


def _images(folder):
  return np.stack(
    [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]
  )


def _colours(images):
  parts = images.reshape(len(images), 4, 8, 4, 8, 3).mean(axis=(2, 4))
  return parts.reshape(len(images), -1) / 255.0
