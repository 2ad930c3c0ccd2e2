"""Runs that train a tiny diffusion model on images that it samples itself."""

import json
import math

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pytest
import safetensors.numpy

from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

pytestmark = [
  pytest.mark.usefixtures("own_cache"),
  pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
  """A file of images with captions; none is compared with another."""
  folder = tmp_path_factory.mktemp("captions")
  rng = np.random.default_rng(0)
  rows = []
  for i in range(6):
    pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    image = {"content": {"image": {"path": f"{i}.png"}}}
    # The second prompt has two images, of which none is looked at either.
    several = [image, image] if i == 1 else [image]
    rows.append({"prompt": f"picture number {i}", "responses": several})
  path = folder / "captions.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


ONLINE = {
  "data": {"rows_per_device": 4},
  "loss": {"name": "pso", "beta": 50.0},
  "optimizer": {"learning_rate": 1e-3},
  "train": {"steps": 3},
  "sample": {"sampler": "lcm", "steps": 3, "guidance": 1.0},
  "score": {"rater": "red"},
}


@pytest.fixture
def build(captions, tiny_images):
  """build(model={...}, ...) -> the config of a run of three steps."""
  return lambda **sections: tiny_images(captions, ONLINE, sections)


def test_killed_and_run_again_it_ends_with_the_same_bits(
  build, tmp_path, run_killed
):
  settings = build(
    train={"checkpoint_every": 1},
    model={"lora": {"rank": 2}},
    data={"eval_holdout": 2},
    sample={"num_prompts": 1},
  )
  assert run(settings, tmp_path / "whole")
  run_killed(settings, tmp_path / "killed", step=2)
  assert run(settings, tmp_path / "killed")
  one, other = (_logged(tmp_path / name) for name in ("whole", "killed"))
  assert [x["loss"] for x in one] == [x["loss"] for x in other]
  assert one[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
  assert one[0]["reward/chosen"] > one[0]["reward/rejected"]
  # As many prompts as a step has; none of their own images is counted.
  assert one[0]["pairs_per_second"] > 0
  assert "images_per_second" not in one[0]
  assert "eval/reward/mean" in one[-1]
  assert one[-1]["samples/red"] == other[-1]["samples/red"]
  name = "adapter/pytorch_lora_weights.safetensors"
  files = [
    safetensors.numpy.load_file(tmp_path / run / name)
    for run in ("whole", "killed")
  ]
  for key, value in files[0].items():
    np.testing.assert_array_equal(value, files[1][key])


@pytest.mark.parametrize("name", ["prompts.txt", "list.json", "a.parquet"])
def test_prompts_alone_train_as_those_of_images(build, tmp_path, name):
  """Bit for bit; and of data with images no latent is stored."""
  prompts = [f"picture number {i}" for i in range(6)]
  file = tmp_path / name
  if name.endswith(".txt"):
    file.write_text("".join(f"{each}\n\n" for each in prompts))
  elif name.endswith(".json"):  # as the paper's list of captions
    rows = [{"caption": x, "trainset_idx": i} for i, x in enumerate(prompts)]
    file.write_text(json.dumps(rows))
  else:
    parquet.write_table(pa.table({"prompt": prompts}), file)
  for run_name, given in (("with", {}), ("alone", {"path": str(file)})):
    settings = build(data={**given, "eval_holdout": 2}, train={"steps": 2})
    assert run(settings, tmp_path / run_name)
  one, other = (_logged(tmp_path / name) for name in ("with", "alone"))
  for key in ("loss", "grad_norm", "reward/mean"):
    assert [x[key] for x in one] == [x[key] for x in other]
  assert one[-1]["eval/reward/mean"] == other[-1]["eval/reward/mean"]
  stored = (tmp_path / "cache" / "prepared" / "encoded").glob("*/*")
  assert {each.name for each in stored} == {"captions-000000.array_record"}


def test_what_samples_and_rates_is_part_of_the_run(build, tmp_path):
  assert run(build(train={"steps": 1}), tmp_path / "run")
  for changed in ({"sample": {"steps": 4}}, {"score": {"rater": ""}}):
    with pytest.raises(UserError, match="holds a run with other settings"):
      run(build(**changed), tmp_path / "run")


def test_eight_devices_do_as_one(build, tmp_path):
  """And the reference is a live copy."""
  for name, mesh, rows in (
    ("one", {"fsdp": 1}, 8),
    ("eight", {"data": 2, "fsdp": 4}, 1),
  ):
    settings = build(mesh=mesh, data={"rows_per_device": rows})
    assert run(settings, tmp_path / name)
  one, eight = (_logged(tmp_path / name) for name in ("one", "eight"))
  assert one[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
  assert abs(one[-1]["loss"] - math.log(2.0)) > 1e-3
  for key in ("loss", "reward/chosen", "reward/rejected"):
    # Beta multiplies what sums of another order round.
    np.testing.assert_allclose(
      [x[key] for x in one], [x[key] for x in eight], rtol=1e-3
    )


@pytest.mark.parametrize(
  ("changed", "says"),
  [
    ({"score": {"rater": ""}}, "config.score names none. Name one"),
    ({"score": {"models": {"x": "y"}}}, "config.score names red, x. Name one"),
    ({"sample": {"sampler": "ddim"}}, "learns from the noise"),
    ({"sample": {"steps": 1}}, "steps to at least 2"),
    ({"sample": {"guidance": 3.0}}, "without guidance"),
    ({"diffusion": {"inversion_steps": 5}}, "inversion_steps is 5"),
    ({"data": {"flip": 0.5}}, "is for those of the data"),
    ({"data": {"encode": "during"}}, "is for those of the data"),
    ({"data": {"aspect_buckets": 3}}, "is for those of the data"),
    ({"sample": {"negative_prompt": "blur"}}, "without guidance, of which"),
    ({"sample": {"height": 32}}, "samples images of 16 pixels a side"),
    ({"reference": {"mode": "none"}}, "compares with a reference"),
    ({"loss": {"name": "ddpo"}}, "takes step_logp, .* images does not have"),
    ({"data": {"curriculum": {"criterion": "length"}}}, "orders comparisons"),
  ],
)
def test_mistakes(build, tmp_path, changed, says):
  with pytest.raises(UserError, match=says):
    run(build(**changed), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def _logged(folder):
  return [each for each in read_metrics(folder) if "loss" in each]
