"""The stage `score`: images of several models, ranked for training."""

import json

import numpy as np
from PIL import Image
import pyarrow.parquet
import pytest

from jaxpref import config
from jaxpref.data.formats import detect, to_records
from jaxpref.data.pictures import decode
from jaxpref.data.read import read_rows, source_files
from jaxpref.errors import UserError
from jaxpref.run import run
from jaxpref.sample.album import Album
from jaxpref.score import image_stage
from jaxpref.score.combine import ensemble, votes
from jaxpref.score.raters import redness

PROMPTS = ["a red cat", "a dog", "a red cat"]
REDS = {"one": (250, 10, 90), "two": (40, 200, 90)}


@pytest.fixture
def sampled(tmp_path):
  """Of two models an album each: three images of two prompts."""
  for name, reds in REDS.items():
    album = Album(tmp_path / name / "samples", PROMPTS, {"seed": 0})
    for number, red in enumerate(reds):
      pixels = np.full((12, 16, 3), (red, 128, number), np.uint8)
      pixels[::2, :, 1] = 90
      album.put(number, pixels)
    album.close()
  return str(tmp_path / "*" / "samples" / "samples.jsonl")


@pytest.fixture
def settings(clip, sampled):
  def make(**given):
    tree = {
      "model": {"family": "sdxl"},
      "stages": ("score",),
      "score": {"rater": "red", "models": {"clip": str(clip[1])}},
      "data": {"path": sampled},
    }
    return config.build(tree | given)

  return make


def _scored(workdir):
  rows = list(read_rows(source_files(workdir / "scored.parquet")))
  assert [detect(row.values) for row in rows] == ["record"] * len(rows)
  return [to_records(row, "record")[0] for row in rows]


def test_images_of_several_models_are_ranked(settings, tmp_path):
  """By prompt, whichever file they are in; then by votes and on average."""
  assert run(settings(), tmp_path / "run")
  first, second = _scored(tmp_path / "run")
  assert [first.prompt, second.prompt] == ["a red cat", "a dog"]
  reds = [decode(each.content)[0, 0, 0] for each in first.responses]
  assert reds == [250, 90, 40, 90]
  assert [len(r.responses) for r in (first, second)] == [4, 2]
  assert not first.comparisons
  table = [
    np.array([[r.scores[x] for x in ("clip", "red")] for r in each.responses])
    for each in (first, second)
  ]
  for record, scores, whole in zip((first, second), table, ensemble(table)):
    pixels = [decode(each.content) for each in record.responses]
    np.testing.assert_allclose(scores[:, 1], [redness(x) for x in pixels])
    told = [each.scores for each in record.responses]
    assert [x["votes"] for x in told] == votes(scores).tolist()
    np.testing.assert_allclose([x["ensemble"] for x in told], whole)
  written = json.loads((tmp_path / "run" / "config.json").read_text())
  assert written["score"]["rater"] == "red"


def test_it_goes_on_where_it_was_stopped(settings, tmp_path, monkeypatch):
  monkeypatch.setattr(image_stage, "_PER_PART", 1)
  rated, write = [], image_stage._rated

  def stops(group, scorers):
    if len(rated) == 1:
      raise KeyboardInterrupt
    rated.append(group[0].record.prompt)
    return write(group, scorers)

  monkeypatch.setattr(image_stage, "_rated", stops)
  with pytest.raises(KeyboardInterrupt):
    run(settings(), tmp_path / "run")
  assert not (tmp_path / "run" / "scored.parquet").exists()

  def goes_on(group, scorers):
    rated.append(group[0].record.prompt)
    return write(group, scorers)

  monkeypatch.setattr(image_stage, "_rated", goes_on)
  assert run(settings(), tmp_path / "run")
  assert rated == ["a red cat", "a dog"]
  whole = (tmp_path / "run" / "scored.parquet").read_bytes()
  assert run(settings(), tmp_path / "run")
  assert len(rated) == 2
  monkeypatch.setattr(image_stage, "_rated", write)
  assert run(settings(), tmp_path / "other")
  assert (tmp_path / "other" / "scored.parquet").read_bytes() == whole
  assert [len(x.responses) for x in _scored(tmp_path / "other")] == [4, 2]


def test_other_images_by_the_same_names_are_rated_anew(settings, tmp_path):
  assert run(settings(), tmp_path / "run")
  before = _scored(tmp_path / "run")[1]
  pixels = np.full((12, 16, 3), (10, 200, 200), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "one/samples/00001.png")
  assert run(settings(), tmp_path / "run")
  after = _scored(tmp_path / "run")[1]
  one, two = (x.responses[0].scores["red"] for x in (before, after))
  assert two == pytest.approx(redness(pixels))
  assert one != two


def test_what_is_not_used_is_listed(settings, tmp_path, capsys):
  (tmp_path / "two/samples/00001.png").write_bytes(b"no image")
  path = str(tmp_path / "two/samples/samples.jsonl")
  data = {"path": path, "max_rejected": 0.5}
  assert run(settings(data=data), tmp_path / "run")
  assert "not used: 1 not an image" in capsys.readouterr().out
  (row,) = (tmp_path / "run/rejected.jsonl").read_text().splitlines()
  assert json.loads(row)["row"] == 2
  with pytest.raises(
    UserError, match=r"rejected\.jsonl\. Mend the rows, or rai"
  ):
    run(settings(data={"path": path}), tmp_path / "strict")


def test_a_videos_frame_is_what_was_rated(settings, tmp_path):
  frames = [Image.new("RGB", (8, 6), (60 * k, 0, 0)) for k in range(5)]
  for name, order in (("a", 1), ("b", -1)):
    first, *rest = frames[::order]
    first.save(tmp_path / f"{name}.gif", save_all=True, append_images=rest)
  frames[3].save(tmp_path / "c.gif")
  row = {"path_A": "a.gif", "path_B": "c.gif", "prompt": "q", "VQ": "A"}
  (file := tmp_path / "videos.jsonl").write_text(json.dumps(row))
  given = {"score": {"rater": "red"}, "data": {"path": str(file)}}
  assert run(settings(**given), tmp_path / "run")
  (record,) = _scored(tmp_path / "run")
  middle, *_ = record.responses
  pixels = decode(middle.content)
  assert pixels[0, 0].tolist() == [120, 0, 0]
  assert middle.scores["red"] == pytest.approx(redness(pixels))


def test_images_are_sampled_and_rated_in_one_run(clip, sd_folder, tmp_path):
  (prompts := tmp_path / "prompts.txt").write_text("a cat\na dog\n")
  tree = {
    "model": {"family": "sdxl", "path": str(sd_folder)},
    "stages": ("sample", "score"),
    "sample": {"prompts": str(prompts), "per_prompt": 2, "steps": 1},
    "score": {"models": {"clip": str(clip[1])}},
    "mesh": {"fsdp": 1},
  }
  assert run(config.build(tree), tmp_path / "run")
  found = _scored(tmp_path / "run")
  assert [record.prompt for record in found] == ["a cat", "a dog"]
  assert [len(record.responses) for record in found] == [2, 2]
  with pytest.raises(UserError, match="rate what they sample"):
    run(config.build(tree | {"data": {"path": "x"}}), tmp_path / "other")
  with pytest.raises(UserError, match="needs something that rates"):
    run(config.build(tree | {"score": {}}), tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_labels_give_way_to_scores(settings, tmp_path, sampled):
  """Pairs with their bytes inside, of one scorer: neither votes nor average."""
  pixels = {name: np.full((8, 8, 3), (red, 0, 0), "u1")
            for name, (red, *_) in REDS.items()}  # fmt: skip
  for name, each in pixels.items():
    Image.fromarray(each).save(tmp_path / f"{name}.png")
  bytes_of = {x: (tmp_path / f"{x}.png").read_bytes() for x in pixels}
  rows = [
    {"prompt": "q", "chosen": bytes_of["two"], "rejected": bytes_of["one"]}
  ]
  table = pyarrow.Table.from_pylist(rows)
  pyarrow.parquet.write_table(table, file := tmp_path / "pairs.parquet")
  given = {"score": {"rater": "red"}, "data": {"path": str(file)}}
  assert run(settings(**given), tmp_path / "run")
  (record,) = _scored(tmp_path / "run")
  two, one = record.responses
  assert two.content.data == bytes_of["two"]
  assert not record.comparisons
  assert one.scores.keys() == {"red"}
  assert one.scores["red"] > two.scores["red"]


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ({"score": {}}, "needs something that rates images"),
    ({"score": {"models": {"x": "/nowhere"}}}, "no such file"),
    ({"model": {"family": "llama"}}, "are for models of images"),
    ({"stages": ("score", "fit")}, "stand alone, or the one before"),
  ],
)
def test_what_cannot_be_scored(settings, tmp_path, given, told):
  with pytest.raises(UserError, match=told):
    run(settings(**given), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_data_without_images(settings, tmp_path):
  (file := tmp_path / "a.jsonl").write_text(
    '{"prompt": "q", "chosen": "a", "rejected": "b"}'
  )
  given = {"data": {"path": str(file)}, "score": {"rater": "red"}}
  with pytest.raises(UserError, match="1 of 1 rows are refused"):
    run(settings(**given), tmp_path / "run")


@pytest.mark.parametrize("models", [{"votes": "x"}, {"a": ""}])
def test_names_and_folders_of_models(settings, models):
  with pytest.raises(UserError, match="it must be the folder of a model"):
    settings(score={"models": models})
