"""Runs that train a tiny diffusion model on preferences, in this process."""

import json
import math
import re

import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from jaxpref import run as run_module
from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run
from jaxpref.score.raters import preference_rate, redness

pytestmark = [
  pytest.mark.usefixtures("own_cache"),
  pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A file of comparisons: reddish images are liked better than bluish ones.

  Of several sizes; one image is in two pairs, and one pair is a tie.
  """
  folder = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)

  def draw(name, colour, size):
    pixels = rng.normal(colour, 20, (*size, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)

  rows = []
  for i in range(8):
    draw(f"red{i}.png", (200, 60, 60), (20, 16) if i % 2 else (16, 22))
    draw(f"blue{i}.png", (60, 60, 200), (16, 16))
    sides = [{"image": {"path": f"{name}{i}.png"}} for name in ("red", "blue")]
    rows.append(
      {
        "prompt": f"a picture, number {i // 2}",
        "responses": [{"content": each} for each in sides],
        "comparisons": [
          {"better": 0, "worse": 1, "preference": 0.5 if i == 7 else 1.0}
        ],
      }
    )
  rows[1]["responses"][1] = rows[0]["responses"][1]
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture
def build(pictures, tiny_images):
  """build(model={...}, ...) -> the config of a run of four steps."""
  return lambda **sections: tiny_images(pictures, sections)


def test_diffusion_dpo_learns_and_exports(build, tmp_path, sd_folder):
  settings = build(
    data={"eval_holdout": 2},
    sample={"num_prompts": 1, "steps": 1, "guidance": 1.0},
    score={"rater": "red"},
  )
  assert run(settings, tmp_path / "run")
  first, *logged = read_metrics(tmp_path / "run")
  # Policy and reference are one program over equal weights: no bit differs.
  assert logged[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-7)
  assert logged[0]["rewards/ties"] == 1.0
  assert first["eval/loss"] == pytest.approx(math.log(2.0), abs=1e-7)
  assert logged[-1]["eval/loss"] < 0.3
  rates = []
  for step in ("000000", "000004"):
    folder = tmp_path / "run" / "samples" / f"step_{step}"
    with Image.open(folder / "00000.png") as image:
      assert image.size == (16, 16)
      rates.append(redness(np.asarray(image)))
  assert [first["samples/red"], logged[-1]["samples/red"]] == rates
  assert first["samples/preferred"] == 0.5
  rose = preference_rate(rates[1:], rates[:1])
  assert logged[-1]["samples/preferred"] == rose
  export = tmp_path / "run" / "export"
  import diffusers

  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(export)
  assert pipeline.unet.config.sample_size == 8
  name = "diffusion_pytorch_model.safetensors"
  before = safetensors.numpy.load_file(sd_folder / "unet" / name)
  after = safetensors.numpy.load_file(export / "unet" / name)
  assert before.keys() == after.keys()
  assert any((before[key] != after[key]).any() for key in before)
  lines = (tmp_path / "run" / "samples" / "samples.jsonl").read_text()
  rows = [json.loads(line) for line in lines.splitlines()]
  assert [row["response"] for row in rows] == [
    "step_000000/00000.png",
    "step_000004/00000.png",
  ]
  assert [row["scores"] for row in rows] == [{"red": rate} for rate in rates]
  page = (tmp_path / "run" / "report.html").read_text()
  assert page.count("data:image/webp;base64") == 2


def test_killed_and_run_again_it_ends_with_the_same_bits(
  build, tmp_path, run_killed
):
  settings = build(
    train={"checkpoint_every": 2},
    diffusion={"drop_caption": 0.3, "share_noise": False},
    model={"lora": {"rank": 2}},
    optimizer={"ema": 0.5},
  )
  assert run(settings, tmp_path / "whole")
  run_killed(settings, tmp_path / "killed", step=3)
  assert run(settings, tmp_path / "killed")
  parts = (tmp_path / name for name in ("whole", "killed"))
  one, other = (_losses(folder) for folder in parts)
  assert one == other
  assert one[0] == pytest.approx(math.log(2.0), abs=1e-7)  # LoRA's base
  name = "adapter/pytorch_lora_weights.safetensors"
  files = [
    safetensors.numpy.load_file(tmp_path / run / name)
    for run in ("whole", "killed")
  ]
  for key, value in files[0].items():
    np.testing.assert_array_equal(value, files[1][key])


def test_errors_cached_for_a_bank_of_noise(build, tmp_path, run_killed):
  """A bank of two noises is met again in the third of three epochs."""
  train = {"steps": 6, "checkpoint_every": 3}
  given = {"noise_bank": 2, "drop_caption": 0.3}
  data = {"eval_holdout": 2}

  def make(mode, **changed):
    return build(
      data=data,
      diffusion=given,
      reference={"mode": mode},
      train=train | changed,
    )

  assert run(make("live"), tmp_path / "live")
  assert run(make("auto"), tmp_path / "cached")
  run_killed(make("cached"), tmp_path / "killed", step=4)
  assert run(make("cached"), tmp_path / "killed")
  live, cached, killed = (
    _losses(tmp_path / name) for name in ("live", "cached", "killed")
  )
  assert cached == killed
  # beta · 1e-6, what an error of about 1 is off in another program.
  assert abs(cached[0] - math.log(2.0)) < 500.0 * 1e-6
  np.testing.assert_allclose(cached, live, atol=500.0 * 1e-6)
  assert max(live) - min(live) > 0.05
  # Of what trains and of what is held out: two draws, and one.
  folder = tmp_path / "cache" / "errors"
  found = [safetensors.numpy.load_file(x)["error"] for x in folder.iterdir()]
  held_out, trained = sorted(found, key=len)
  assert held_out.shape == (1, 4)
  assert trained.shape == (2, 10)  # a tie is left out
  assert (trained[0] != trained[1]).all()
  # The seed makes other noise, for which nothing is there yet.
  settings = make("cached", seed=1, steps=1)
  assert run(settings, tmp_path / "other")
  assert len([*folder.iterdir()]) == 4
  # What other weights could have written is told, and what is cut is not used.
  for path in folder.iterdir():
    error = safetensors.numpy.load_file(path)["error"]
    safetensors.numpy.save_file({"error": 1.01 * error}, path)
  with pytest.raises(UserError, match=r"0\.01 of their size off"):
    run(settings, tmp_path / "drifted")
  for path in folder.iterdir():
    path.write_bytes(path.read_bytes()[:-4])
  assert run(settings, tmp_path / "again")
  assert _losses(tmp_path / "again") == _losses(tmp_path / "other")


def test_to_go_on_from_an_adapter(build, tmp_path):
  """The reference is the model with it, or with mode=base without."""
  assert run(
    build(model={"lora": {"rank": 2}}, train={"steps": 2}), tmp_path / "first"
  )
  model = {"lora": {"path": str(tmp_path / "first" / "adapter")}}
  first = {}
  for mode, given in (
    ("auto", {}),
    ("cached", {"noise_bank": 1}),
    ("base", {}),
  ):
    settings = build(
      model=model,
      reference={"mode": mode},
      diffusion=given,
      train={"steps": 2},
    )
    assert run(settings, tmp_path / mode)
    first[mode] = _losses(tmp_path / mode)[0]
  assert first["auto"] == pytest.approx(math.log(2.0), abs=1e-7)
  assert abs(first["cached"] - math.log(2.0)) < 500.0 * 1e-6
  assert abs(first["base"] - math.log(2.0)) > 500.0 * 1e-5


def test_eight_devices_do_as_one(build, tmp_path):
  for name, mesh, rows in (
    ("one", {"fsdp": 1}, 16),
    ("eight", {"data": 2, "fsdp": 4}, 2),
  ):
    settings = build(mesh=mesh, data={"rows_per_device": rows})
    assert run(settings, tmp_path / name)
  one, eight = (_losses(tmp_path / name) for name in ("one", "eight"))
  # Beta multiplies what sums of another order round.
  np.testing.assert_allclose(one, eight, rtol=1e-3)


def test_from_caches_and_from_pixels_are_the_same(build, tmp_path, monkeypatch):
  """And each step's program holds what it needs, and no encoder beside."""
  programs = _spy_on_programs(monkeypatch)
  for encode in ("before", "during"):
    settings = build(
      data={"encode": encode, "flip": 0.5, "eval_holdout": 2},
      diffusion={"drop_caption": 0.3, "share_noise": False},
    )
    assert run(settings, tmp_path / encode)
  cached, pixels = (read_metrics(tmp_path / x) for x in ("before", "during"))
  assert len(cached) == len(pixels) == 5
  told = ("loss", "grad_norm", "rewards/margins", "eval/loss", "eval/error")
  for one, other in zip(cached, pixels, strict=True):
    # On CPU no bit differs: what is stored was made by the same program.
    one, other = (
      {name: each[name] for name in told if name in each}
      for each in (one, other)
    )
    assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
  stored, encoding = programs[:2]
  for scope in ("encode_images", "encode_text"):
    assert scope in _scopes(encoding)
    assert scope not in _scopes(stored)
  for what in (
    "f32[49408,8]",  # a text encoder's table
    "f32[3,3,3,8]",  # the autoencoder's first kernel
    "u8[1,8,16,16,3]",  # pixels
  ):
    assert what in encoding
    assert what not in stored
  # Latents, and the context of four prompts.
  for what in ("f32[1,8,8,8,4]", "f32[1,4,77,8]"):
    assert what in stored


def test_from_pixels_killed_and_run_again(build, tmp_path, run_killed):
  """With a bank of noise the errors that are cached are of pixels too."""
  diffusion = {"drop_caption": 0.3, "noise_bank": 2}
  settings = build(
    data={"encode": "during", "flip": 0.5},
    diffusion=diffusion,
    train={"checkpoint_every": 2},
  )
  assert run(settings, tmp_path / "whole")
  run_killed(settings, tmp_path / "killed", step=3)
  assert run(settings, tmp_path / "killed")
  one, other = (_losses(tmp_path / name) for name in ("whole", "killed"))
  assert one == other
  assert abs(one[0] - math.log(2.0)) < 500.0 * 1e-6
  # Nothing was encoded before. What is gives the same losses, of the errors
  # that were cached here.
  assert not (tmp_path / "cache" / "prepared" / "encoded").exists()
  stored = build(data={"flip": 0.5}, diffusion=diffusion)
  assert run(stored, tmp_path / "stored")
  assert len([*(tmp_path / "cache" / "errors").iterdir()]) == 1
  np.testing.assert_allclose(_losses(tmp_path / "stored"), one, atol=1e-5)


def test_offline_pso_from_latents_and_from_pixels(build, tmp_path):
  """Of one device and of eight; what it samples by is part of the run."""
  given = {
    "data": {"eval_holdout": 2, "rows_per_device": 8},
    "loss": {"name": "pso_offline", "beta": 50.0},
    "sample": {"sampler": "lcm", "steps": 3, "num_prompts": 0},
  }
  assert run(build(**given), tmp_path / "stored")
  found = _losses(tmp_path / "stored")
  assert found[0] == pytest.approx(math.log(2.0), abs=1e-6)
  first, *_, last = read_metrics(tmp_path / "stored")
  assert first["eval/loss"] == pytest.approx(math.log(2.0), abs=1e-6)
  assert last["eval/loss"] < 0.69
  assert last["eval/rewards/margins"] > 0.0
  changed = {**given, "sample": {"sampler": "lcm", "steps": 4}}
  with pytest.raises(UserError, match="holds a run with other settings"):
    run(build(**changed), tmp_path / "stored")
  other = {"encode": "during", "eval_holdout": 2, "rows_per_device": 1}
  spread = build(**{**given, "data": other, "mesh": {"data": 2, "fsdp": 4}})
  assert run(spread, tmp_path / "pixels")
  # Beta multiplies what sums of another order round.
  np.testing.assert_allclose(_losses(tmp_path / "pixels"), found, rtol=1e-3)


@pytest.mark.parametrize(
  ("changed", "says"),
  [
    (
      {"loss": {"name": "pso_offline", "beta": 50.0}},
      "learns from the noise that a sampler adds",
    ),
    ({"data": {"rows_per_device": 1}}, "A prompt has 2 images"),
    ({"data": {"resolution": 17}}, "such as 16 or 18"),
    ({"loss": {"name": "kto"}}, "training on images does not have"),
    ({"model": {"path": "/nowhere"}}, "there is no model_index.json"),
    ({"sample": {"sampler": "eular"}}, "euler"),
    ({"diffusion": {"timesteps": (5, 1000)}}, "at most 999"),
    ({"diffusion": {"noise_bank": -1}}, "noise_bank is -1"),
    ({"diffusion": {"inversion_steps": 1001}}, "at most 1000"),
    (
      {"diffusion": {"inversion_steps": 5, "noise_bank": 1}},
      "neither a noise_",
    ),
    ({"reference": {"mode": "cached"}}, "Set noise_bank to"),
    ({"reference": {"fill": "during"}}, "Set it to before"),
    ({"data": {"encode": "during", "resolution": 17}}, "such as 16 or 18"),
  ],
)
def test_mistakes(build, tmp_path, changed, says):
  with pytest.raises(UserError, match=says):
    run(build(**changed), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def _losses(folder):
  return [each["loss"] for each in read_metrics(folder) if "loss" in each]


def _scopes(program):
  """Of its operations; its table of functions has those of other traces too."""
  return "\n".join(re.findall('op_name="([^"]*)"', program))


def _spy_on_programs(monkeypatch):
  """The compiled text of each run's training step, as they come."""
  programs, make = [], run_module.make_step

  def spied(*args):
    step, seen = make(*args), []

    def call(*inputs):
      if not seen:
        seen.append(True)
        programs.append(step.lower(*inputs).compile().as_text())
      return step(*inputs)

    return call

  monkeypatch.setattr(run_module, "make_step", spied)
  return programs
