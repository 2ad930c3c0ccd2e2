"""Runs on images of several shapes: tall, square and wide in one file."""

import dataclasses
import json
import math

import jax
import numpy as np
from PIL import Image
import pytest

from jaxpref import run as run_module
from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

pytestmark = [
  pytest.mark.usefixtures("own_cache"),
  pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),
]

SIZES = {"tall": (40, 20), "square": (24, 24), "wide": (18, 34)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Reddish images are liked better: pairs, a tie, lists, and a missing one."""
  folder = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)

  def draw(name, colour, size):
    pixels = rng.normal(colour, 20, (*size, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return {"content": {"image": {"path": name}}}

  rows = []
  kinds = ["tall"] * 6 + ["square"] * 2 + ["wide"] * 4
  for i, kind in enumerate(kinds):
    count = 4 if i == 5 else 2
    colours = np.linspace((200, 60, 60), (60, 60, 200), count)
    shown = [
      draw(f"{i}-{k}.png", colour, SIZES[kind])
      for k, colour in enumerate(colours)
    ]
    sure = 0.5 if i == 7 else 1.0
    rows.append(
      {
        "prompt": f"a {kind} picture, number {i}",
        "responses": shown,
        "comparisons": [
          {"better": k, "worse": k + 1, "preference": sure}
          for k in range(count - 1)
        ],
      }
    )
  rows[2]["responses"][1] = rows[1]["responses"][1]
  rows[3]["responses"][1] = {"content": {"image": {"path": "nowhere.png"}}}
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture
def build(pictures, tiny_images):
  """build(data={...}, ...) -> the config of two epochs of six steps.

  Losses of pairs take ten of the rows: 5 tall, 1 square and 4 wide.
  """
  data = {"aspect_buckets": 3, "batch_size": 2, "max_rejected": 0.1}
  data |= {"rows_per_device": 6}
  base = {"data": data, "train": {"steps": 12}}
  return lambda **sections: tiny_images(pictures, base, sections)


def test_from_caches_and_from_pixels_are_the_same(build, tmp_path, monkeypatch):
  """Steps come in three shapes, as they are traced."""
  traced, make = {"before": set(), "during": set()}, run_module.make_step

  def spied(objective, *rest):
    def forward(params, frozen, batch, key):
      traced[encode].add(str(jax.tree.map(jax.typeof, batch)))
      return objective.forward(params, frozen, batch, key)

    return make(dataclasses.replace(objective, forward=forward), *rest)

  monkeypatch.setattr(run_module, "make_step", spied)
  for encode in traced:
    settings = build(
      data={"encode": encode, "flip": 0.5},
      diffusion={"drop_caption": 0.3},
    )
    assert run(settings, tmp_path / encode)
    assert len(traced[encode]) == 3
  cached, pixels = (read_metrics(tmp_path / x) for x in ("before", "during"))
  assert len(cached) == len(pixels) == 12
  for one, other in zip(cached, pixels, strict=True):
    for name in ("loss", "grad_norm", "rewards/margins", "error"):
      assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5)
  assert cached[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-7)


def test_killed_and_run_again_it_ends_with_the_same_bits(
  build, tmp_path, run_killed
):
  settings = build(
    data={"flip": 0.5},
    diffusion={"drop_caption": 0.3},
    train={"checkpoint_every": 2},
  )
  assert run(settings, tmp_path / "whole")
  run_killed(settings, tmp_path / "killed", step=5)
  assert run(settings, tmp_path / "killed")
  one, other = (_losses(tmp_path / name) for name in ("whole", "killed"))
  assert one == other
  assert len(one) == 12
  with pytest.raises(UserError, match="aspect_buckets was 3 and is 1"):
    run(build(data={"aspect_buckets": 1}), tmp_path / "killed")


@pytest.mark.certify
def test_errors_cached_for_a_bank_of_noise(build, tmp_path, run_killed):
  """Of each shape; with held-out examples, and a sample before and after."""
  diffusion = {"drop_caption": 0.3, "noise_bank": 1}
  given = {
    "data": {"eval_holdout": 3, "batch_size": 1},
    "sample": {"num_prompts": 1, "steps": 1, "guidance": 1.0},
    "diffusion": diffusion,
  }
  settings = build(**given, train={"checkpoint_every": 2})
  assert run(settings, tmp_path / "whole")
  run_killed(settings, tmp_path / "killed", step=5)
  assert run(settings, tmp_path / "killed")
  one, other = (_losses(tmp_path / name) for name in ("whole", "killed"))
  assert one == other
  assert len(one) == 12
  # beta · 1e-6, what an error of about 1 is off in another program.
  assert abs(one[0] - math.log(2.0)) < 500.0 * 1e-6
  assert run(build(reference={"mode": "live"}, **given), tmp_path / "live")
  np.testing.assert_allclose(_losses(tmp_path / "live"), one, atol=500.0 * 1e-6)
  first, *_, last = read_metrics(tmp_path / "whole")
  assert abs(first["eval/loss"] - math.log(2.0)) < 500.0 * 1e-6
  assert last["eval/loss"] < first["eval/loss"]
  folder = tmp_path / "whole" / "samples"
  with Image.open(folder / "step_000012" / "00000.png") as image:
    assert image.size == (16, 16)


@pytest.mark.certify
def test_eight_devices_do_as_one(build, tmp_path):
  for name, mesh, rows in (
    ("one", {"fsdp": 1}, 8),
    ("eight", {"data": 2, "fsdp": 4}, 1),
  ):
    settings = build(mesh=mesh, data={"rows_per_device": rows})
    assert run(settings, tmp_path / name)
  assert jax.device_count() == 8
  one, eight = (_losses(tmp_path / name) for name in ("one", "eight"))
  # Beta multiplies what sums of another order round.
  np.testing.assert_allclose(one, eight, rtol=1e-3)


@pytest.mark.certify
def test_lists_of_several_shapes(build, tmp_path):
  settings = build(
    loss={"name": "plackett_luce"},
    data={"encode": "during", "batch_size": 3},
    train={"steps": 0},
  )
  assert run(settings, tmp_path / "run")
  # Lists of 5, 2 (a tie has none) and 4 prompts at most.
  assert len(_losses(tmp_path / "run")) == 5


@pytest.mark.parametrize(
  ("changed", "says"),
  [
    ({"aspect_buckets": 0}, "aspect_buckets is 0; it must be at least 1"),
    ({"aspect_buckets": 8}, "at .*resolution 16, .* Set it to 7"),
    ({"resolution": 18}, "resolution is 18, .* such as 32"),
    ({"encode": "during", "resolution": 18}, "such as 32"),
    ({"rows_per_device": 3}, "A prompt has 4 images"),
  ],
)
def test_mistakes(build, tmp_path, changed, says):
  with pytest.raises(UserError, match=says):
    run(build(data=changed), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def _losses(folder):
  return [each["loss"] for each in read_metrics(folder) if "loss" in each]
