"""A file of prompts to a folder of images; mistakes; going on."""

import json

import numpy as np
from PIL import Image
import pytest

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.launch import main
from jaxpref.sample import image_stage
from jaxpref.sample.album import Album, read_starts

CONFIG = "configs/sample_sdxl.py"


@pytest.fixture
def prompts(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text("a cat\n\na dog\n" + "word " * 10_000 + "\n")
  return path


@pytest.fixture(scope="module")
def opened():
  return {}


@pytest.fixture(autouse=True)
def _open_each_folder_once(monkeypatch, opened):
  open_image_model = image_stage.open_image_model

  def once(settings):
    if settings.path not in opened:
      opened[settings.path] = open_image_model(settings)
    return opened[settings.path]

  monkeypatch.setattr(image_stage, "open_image_model", once)


@pytest.fixture
def fail(tmp_path, prompts, capsys, sdxl_folder):
  """fail(overrides) -> the paragraph of a run that must leave nothing."""

  def call(**changed):
    given = {"model.path": sdxl_folder, "sample.prompts": prompts}
    given |= {key.replace("__", "."): value for key, value in changed.items()}
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    workdir = tmp_path / "run"
    assert main([f"--config={CONFIG}", f"--workdir={workdir}", *flags]) == 2
    assert not workdir.exists()
    err = capsys.readouterr().err
    assert err.startswith("jaxpref: ")
    return " ".join(err.split())

  return call


def test_mistakes_in_settings(fail, tmp_path):
  cases = {
    "sample__height": (68, "multiple of 8, such as 64 or 72"),
    "sample__sampler": ("eular", "Did you mean 'euler'?"),
    "sample__steps": (0, "at least 1"),
    "sample__image": (tmp_path / "no.png", "image file cannot be read"),
    "model__family": ("llama", "the stages 'sample' and 'score' stand alone"),
    "stages": (
      "('sample','fit')",
      "the stages 'sample' and 'score' stand alone",
    ),
    "model__path": (tmp_path / "nowhere", "where there is no model_index.json"),
  }
  for key, (value, words) in cases.items():
    assert words in fail(**{key: value}), key
  assert "where there is no model_index.json" in fail(model__path=tmp_path)


def test_mistakes_in_prompts(fail, tmp_path):
  path = tmp_path / "other.jsonl"
  assert "there is no file" in fail(sample__prompts=path)
  path.write_text("\n \n")
  assert "holds no prompt" in fail(sample__prompts=path)
  path.write_text('{"prompt": "a cat"}\n{"text": "a dog"}\n')
  told = "line 2: nothing is in `prompt` or `caption`; its columns are text"
  assert told in fail(sample__prompts=path)
  path.write_text('{"prompt": ["a cat"]}\n')
  assert "images are made of texts" in fail(sample__prompts=path)
  assert "sample.prompts is empty" in fail(sample__prompts="''")


class Painter:
  """In place of a model: an image is its number, in grey."""

  def __init__(self):
    self.made = []

  def __call__(self, params, prompts, numbers):
    self.made += numbers
    shape = (len(numbers), 64, 64, 3)
    grey = np.reshape(numbers, (-1, 1, 1, 1))
    return np.broadcast_to(grey, shape).astype(np.uint8)


@pytest.fixture
def paint(tmp_path, prompts, sdxl_folder, monkeypatch):
  """paint(overrides) -> the numbers of the images that were made."""

  def call(**changed):
    painter = Painter()
    monkeypatch.setattr(image_stage, "make_images", lambda *_: painter)
    flags = [
      f"--config.{key.replace('__', '.')}={value}"
      for key, value in {
        "model__path": sdxl_folder,
        "sample__prompts": prompts,
        "sample__per_prompt": 2,
        "mesh__fsdp": 1,
        **changed,
      }.items()
    ]
    status = main([f"--config={CONFIG}", f"--workdir={tmp_path}/run", *flags])
    return painter.made if status == 0 else status

  return call


def test_it_goes_on_where_images_are_missing(paint, tmp_path, capsys):
  assert paint() == [0, 1, 2, 3, 4, 5]
  assert "2 of the prompts are longer" in capsys.readouterr().out
  for number in (1, 4):
    (tmp_path / "run" / "samples" / f"{number:05d}.png").unlink()
  assert paint() == [1, 4]
  assert paint(mesh__fsdp=4) == []
  for key, value in (
    ("sample__seed", 1), ("sample__guidance", 4.0), ("sample__per_prompt", 1),
  ):  # fmt: skip
    assert paint(**{key: value}) == 2
    assert "was made otherwise" in " ".join(capsys.readouterr().err.split())


def test_a_png_says_how_it_was_made(paint, tmp_path):
  paint()
  samples = tmp_path / "run" / "samples"
  with Image.open(samples / "00003.png") as image:
    assert image.text["prompt"] == "a dog"
    settings = json.loads(image.text["settings"])
    assert np.asarray(image).max() == 3
  assert settings["image"] == 3
  assert settings["seed"] == 0
  assert settings["steps"] == 50
  assert (settings["height"], settings["width"]) == (64, 64)
  lines = (samples / "samples.jsonl").read_text().splitlines()
  assert json.loads(lines[3]) == {
    "prompt": "a dog",
    "response": "00003.png",
    "seed": 0,
    "image": 3,
  }
  written = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config.build(written).stages == ("sample",)


def test_contact_sheet_of_prompts_in_any_alphabet(tmp_path):
  prompts = ["üñï ☃ Ελλάδα", "line\nbreak", "word " * 10_000]
  album = Album(tmp_path, prompts, {"seed": 0})
  for number in range(3):
    grey = np.full((32, 64, 3), 60 * (number + 1), np.uint8)
    album.put(number, grey)
  with Image.open(album.close()) as sheet:
    pixels = np.asarray(sheet)
  assert pixels.shape == (2 * 298 + 8, 2 * 264 + 8, 3)
  for number, (y, x) in enumerate([(8, 8), (8, 272), (306, 8)]):
    assert (pixels[y : y + 128, x : x + 256] == 60 * (number + 1)).all()
    assert pixels[y + 256 : y + 290, x : x + 256].min() < 100  # its caption


def test_images_of_another_run_to_start_from(tmp_path):
  for number, size in enumerate([(8, 6), (8, 6), (6, 8)]):
    Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"0000{number}.png")
  start = read_starts(str(tmp_path), ["a", "b"])
  assert [start(i)[0, 0, 0] for i in (0, 1)] == [0, 1]
  one = read_starts(str(tmp_path / "00001.png"), ["a"] * 9)
  assert one(8).max() == 1
  with pytest.raises(UserError, match=r"00002\.png is 6 wide and 8 high, and"):
    read_starts(str(tmp_path), "abc")
  (tmp_path / "00002.png").unlink()
  with pytest.raises(UserError, match=r"cannot be read: .*00002\.png"):
    read_starts(str(tmp_path), "abc")
  album = Album(tmp_path / "album", ["a", "b"], {"seed": 0})
  for number in (0, 1):
    album.put(number, np.zeros((6, 8, 3), np.uint8))
  read_starts(str(tmp_path / "album"), ["a", "b"])
  with pytest.raises(UserError, match="was made of 'b', and the image of its"):
    read_starts(str(tmp_path / "album"), ["a", "a"])


def test_a_file_that_is_no_image_of_a_run(tmp_path):
  (tmp_path / "00000.png").write_bytes(b"no image")
  with pytest.raises(UserError, match="is not an image of a run"):
    Album(tmp_path, ["a cat"], {"seed": 0})
