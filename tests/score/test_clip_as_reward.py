"""CLIP as what rates the images that a model samples in training."""

import json
import math

import jax
import numpy as np
from PIL import Image
import pytest

from jaxpref import config
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run
from jaxpref.score.clip import ClipScorer

pytestmark = [
  pytest.mark.usefixtures("own_cache"),
  pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),
]
CAPTIONS = [f"picture number {i}" for i in range(4)]


def test_within_a_program_scores_are_the_same(clip):
  """But for rounding to levels of 256 where images are scaled."""
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (3, 4, 4, 3), np.uint8)
  for size in ((12, 12), (40, 30)):
    images = np.stack(
      [np.asarray(Image.fromarray(each).resize(size)) for each in small]
    )
    scorer = ClipScorer(str(clip[1]))
    vectors = scorer.describe(CAPTIONS[:3])
    rate = jax.jit(scorer.rate_pixels)
    found = rate(scorer.params, images, vectors)
    expected = scorer(list(images), CAPTIONS[:3])
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert (
      np.abs(expected - rate(scorer.params, images, vectors[::-1])).max() > 0.1
    )


@pytest.fixture
def settings(clip, sd_folder, tmp_path):
  rows = []
  for i, caption in enumerate(CAPTIONS):
    Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    image = {"content": {"image": {"path": f"{i}.png"}}}
    rows.append({"prompt": caption, "responses": [image]})
  path = tmp_path / "captions.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return config.build(
    {
      "model": {"family": "sdxl", "path": str(sd_folder)},
      "data": {"path": str(path), "batch_size": 4, "rows_per_device": 4},
      "loss": {"name": "pso"},
      "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
      "train": {"steps": 2},
      "mesh": {"fsdp": 1},
      "sample": {
        "prompts": str(path),
        "num_prompts": 2,
        "sampler": "lcm",
        "steps": 2,
        "guidance": 1.0,
      },
      "score": {"models": {"clip": str(clip[1])}},
    }
  )


def test_pso_by_clip(settings, tmp_path):
  assert run(settings, tmp_path / "run")
  _, *lines = read_metrics(tmp_path / "run")
  assert lines[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
  assert lines[0]["reward/chosen"] > lines[0]["reward/rejected"]
  assert abs(lines[1]["loss"] - math.log(2.0)) > 1e-6
  # The images that are shown are rated by the same model.
  rows = (tmp_path / "run" / "samples" / "samples.jsonl").read_text()
  shown = [json.loads(row) for row in rows.splitlines()]
  folder = tmp_path / "run" / "samples"
  pixels = [np.asarray(Image.open(folder / row["response"])) for row in shown]
  scorer = ClipScorer(settings.score.models["clip"])
  expected = scorer(pixels, [row["prompt"] for row in shown])
  np.testing.assert_allclose(
    [row["scores"]["clip"] for row in shown], expected, rtol=1e-5
  )
  mean = np.mean(expected[-2:])
  assert lines[-1]["samples/clip"] == pytest.approx(mean, rel=1e-5)
