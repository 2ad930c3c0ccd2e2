"""Each schema of image preferences to records, and what is refused."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from jaxpref import config
from jaxpref.data import build, formats, tokenizer
from jaxpref.data.formats import Refused
from jaxpref.data.pictured import pictured
from jaxpref.data.pictures import decode
from jaxpref.data.read import Row, read_rows, source_files
from jaxpref.errors import UserError
from jaxpref.types import Image, Video

_spec = importlib.util.spec_from_file_location(
  "make_image_schemas",
  pathlib.Path(__file__).parent / "schemas/make_image_schemas.py",
)
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)
RED, LIME, JPEG = schemas.RED, schemas.LIME, schemas.JPEG


def _records(path):
  """(format, record) of each row."""
  rows = list(read_rows(source_files(path)))
  names = [formats.detect(row.values) for row in rows]
  return [
    (name, record)
    for name, row in zip(names, rows)
    for record in formats.to_records(row, name)
  ]


def _content(folder, name):
  """Of a color's name an image, of several or of a file a video's."""
  if isinstance(name, list):
    return Video(tuple(_content(folder, each) for each in name))
  if not isinstance(name, str):
    return name
  if name.endswith(".mp4"):
    path = str(folder / "videos" / name)
    moments = (0.0, 0.25, 0.5, 0.75, 1.0)
    return Video(tuple(Image(path=path, at=at) for at in moments))
  return Image(path=str(folder / f"images/{name}.png"))


PICK = [Image(JPEG), Image(LIME)]
URL = Image(path="https://example.org/lime.PNG?size=8")
# Format, images (a color for a file's) and comparisons of each row.
EXPECTED = {
  "pickapic": [
    ("pickapic", PICK, compared)
    for compared in ([(0, 1, 1.0)], [(1, 0, 1.0)], [(0, 1, 0.5)], [])
  ],
  "ranked_structs": [("image_ranked", [Image(RED), "lime"], [])],
  "pair_structs": [("image_pair", [Image(RED), Image(LIME)], [(0, 1, 1.0)])],
  "pair_bytes": [("image_pair", [Image(RED), Image(LIME)], [(0, 1, 1.0)])],
  "pair_paths": [("image_pair", ["red", URL], [(0, 1, 1.0)])],
  "record": [("record", [Image(RED), "lime"], [(1, 0, 0.75)])],
  "hpdv2_train": [
    ("hpdv2", ["red", "lime"], compared)
    for compared in ([(0, 1, 1.0)], [(1, 0, 1.0)], [(0, 1, 0.5)])
  ],
  # Of four people one prefers red to lime; lime to blue three, and a tie.
  "hpdv2_test": [
    (
      "hpdv2",
      ["red", "lime", "blue"],
      [(1, 0, 0.75), (0, 2, 0.75), (1, 2, 0.875)],
    ),
  ],
  "imagereward": [("image_ranked", ["red", "lime"], [])],
  "record_json": [("record", ["red", "lime"], [])],
  "videofeedback": [
    ("videofeedback", [["red", "lime", "blue"]], []),
    ("videofeedback", [["red", "black", "blue"]], []),
    ("videofeedback", [["red", "lime", "blue"]], []),
  ],
  "videoalign": [
    ("videoalign", ["red.mp4", "lime.mp4"], compared)
    for compared in ([(1, 0, 1.0)], [(0, 1, 0.5)], [])
  ],
}


def test_each_schema_has_an_expectation():
  alone = {"pickapic_no_images", "prompts", "captions"}  # see test_prompts.py
  assert {*EXPECTED, *alone} == set(schemas.ROWS)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("relative", [False, True])
def test_a_schema_is_detected_and_read(tmp_path, name, relative, monkeypatch):
  path = schemas.write(tmp_path, name)
  if relative:
    monkeypatch.chdir(tmp_path)
    path = path.name
  found = _records(path)
  assert {record.prompt for _, record in found[:2]} == {"a cat"}
  told = [
    (
      detected,
      [each.content for each in record.responses],
      [tuple(each)[:3] for each in record.comparisons],
    )
    for detected, record in found
  ]
  assert told == [
    (
      detected,
      [_content(tmp_path, x) for x in images],
      compared,
    )
    for detected, images, compared in EXPECTED[name]
  ]


def test_a_tie_of_pickapic_is_not_a_win(tmp_path):
  """Neither image of it is better, and the row that nobody judged has none."""
  records = [r for _, r in _records(schemas.write(tmp_path, "pickapic"))]
  sure = [[c.preference for c in r.comparisons] for r in records]
  assert sure == [[1.0], [1.0], [0.5], []]
  models = [each.meta["model"] for each in records[0].responses]
  assert models == ["xl", "dreamlike"]


def test_images_that_datasets_saves_are_read(tmp_path):
  ((name, record),) = _records(schemas.write_datasets(tmp_path))
  assert name == "image_pair"
  first, second = [decode(each.content) for each in record.responses]
  assert (first == (255, 0, 0)).all()
  assert (second == (0, 255, 0)).all()


def test_ranks_and_scores_grow_with_what_they_praise(tmp_path):
  scores = lambda name: [
    each.scores
    for _, record in _records(schemas.write(tmp_path, name))
    for each in record.responses
  ]
  assert scores("imagereward") == [{"rank": -2.0}, {"rank": -1.0}]
  assert [each["rank"] for each in scores("hpdv2_test")] == [-2.0, -1.0, -3.0]
  rated = scores("ranked_structs")
  assert rated[1] == {"aesthetic": 6.5, "alignment": 0.0}
  assert scores("pair_structs") == [{"overall": 2.0}, {"overall": 1.0}]
  group = {"prompt": "a cat", "image": ["a.png", "b.png"], "rank": [1, 2],
           "overall_rating": [6, 2], "fidelity_rating": [7, 3]}  # fmt: skip
  _, record = _parse(group)
  assert record.responses[0].scores == {
    "rank": -1.0, "overall": 6.0, "fidelity": 7.0,
  }  # fmt: skip
  _, record = _parse({"prompt": "q", "images": ["a", "b"], "scores": [1, 2]})
  assert record.responses[1].scores == {"score": 2.0}


def test_videos_are_rated_on_several_axes(tmp_path):
  rated = _records(schemas.write(tmp_path, "videofeedback"))[0][1]
  assert rated.responses[0].scores == {
    "visual_quality": 3.0, "temporal_consistency": 2.0, "dynamic_degree": 3.0,
    "text_to_video_alignment": 4.0, "factual_consistency": 1.0,
  }  # fmt: skip
  compared = [r for _, r in _records(schemas.write(tmp_path, "videoalign"))]
  scores = [[each.scores for each in r.responses] for r in compared]
  same = {"VQ": 0.5, "MQ": 0.5, "TA": 0.5}
  assert scores == [
    [same | {"VQ": 1.0, "MQ": 0.0}, same | {"VQ": 0.0, "MQ": 1.0}],
    [{"VQ": 0.5, "MQ": 0.5}] * 2,
    [same | {"VQ": 0.0}, same | {"VQ": 1.0}],
  ]
  assert compared[0].responses[1].meta == {"model": "pika"}
  opinions = {"MOS_A_VQ": "3.5", "MOS_B_VQ": 2}
  _, record = _parse(schemas.ROWS["videoalign"][1] | opinions)
  assert [r.scores["MOS_VQ"] for r in record.responses] == [3.5, 2.0]


def test_rows_of_one_videos_prompt_are_one_example(tmp_path):
  found, tally, told = _pictured(schemas.write(tmp_path, "videofeedback"))
  assert not told
  assert tally.formats == {"videofeedback": 3}
  assert [len(each.record.responses) for each in found] == [2, 1]
  stills = [each[0, 0].tolist() for each in found[0].pixels]
  assert stills == [[0, 255, 0], [0, 0, 0]]
  (tmp_path / "images/blue.png").write_bytes(b"no image")
  found, _, told = _pictured(tmp_path / "videofeedback.parquet")
  assert not found
  assert {each.kind for each in told} == {"not an image"}


def _parse(values):
  name = formats.detect(values)
  row = Row("a.jsonl", 1, values, "s3://b/c")
  return name, formats.to_records(row, name)[0]


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("images/a.png", "s3://b/c/images/a.png"),
    ("/mnt/a.png", "/mnt/a.png"),
    ("gs://d/a.png", "gs://d/a.png"),
  ],
)
def test_paths_begin_where_the_data_are(path, expected):
  values = {"prompt": "q", "chosen": path, "rejected": "b.png"}
  _, record = _parse(values)
  assert record.responses[0].content == Image(path=expected)


@pytest.mark.parametrize(
  ("chosen", "rejected"),
  [
    ("It is in a.png", "It is in b.png"),
    ("a.png", "There is none."),
    ("a.png\n", "b.png"),
  ],
)
def test_texts_that_name_images_stay_texts(chosen, rejected):
  values = {"prompt": "q", "chosen": chosen, "rejected": rejected}
  assert formats.detect(values) == "explicit"


def _changed(name, **values):
  return {**schemas.ROWS[name][0], **values}


@pytest.mark.parametrize(
  ("values", "reason"),
  [
    (_changed("pickapic", label_0=1.0, label_1=1.0), "label_0 and label_1 are"),
    (_changed("pickapic", label_0=2.0, label_1=-1.0), "2 and -1; they must be"),
    (_changed("pickapic", label_0=None), "label_0 is null"),
    (_changed("pickapic", label_0="left"), "label_0 is not a number"),
    (_changed("pickapic", has_label="yes"), "has_label is not true or false"),
    (_changed("pickapic", jpg_1=None), "jpg_1 is null"),
    (_changed("pickapic", jpg_1=b""), "jpg_1 is not an image: found bytes"),
    (_changed("pickapic", jpg_1=3), "jpg_1 is not an image: found int 3; it"),
    (_changed("pickapic", jpg_1=JPEG), "chosen equals rejected"),
    (_changed("pickapic", caption=" "), "empty prompt"),
    (
      {k: v for k, v in schemas.ROWS["pickapic"][0].items() if "jpg" not in k},
      "no jpg_0: the row holds addresses of images",
    ),
    (_changed("hpdv2_train", human_preference=[1]), "found list .* 2 images"),
    (_changed("hpdv2_train", human_preference=[1, 2]), "is not 0 or 1"),
    (_changed("hpdv2_train", human_preference="ab"), "number for each image"),
    (_changed("hpdv2_train", file_path="a.png"), "is not a list of images"),
    (_changed("hpdv2_train", file_path=["a.png", 3]), "file_path is not an"),
    (_changed("hpdv2_train", file_path=["a", "a"]), "chosen equals rejected"),
    (_changed("hpdv2_test", rank=None, raw_annotations=[]), "no ranking"),
    (_changed("hpdv2_test", rank=["first", 2, 3]), "rank is not a number"),
    (_changed("hpdv2_test", raw_annotations=[3]), "not a list of objects"),
    (
      _changed("hpdv2_test", raw_annotations=[{"rank": [1]}]),
      "rank is not a number for each image",
    ),
    (_changed("imagereward", generations=[]), "generations is not a list"),
    (_changed("imagereward", ranking=[1, float("nan")]), "not a number"),
    (_changed("pair_bytes", rejected=RED), "chosen equals rejected"),
    (_changed("pair_bytes", prompt=3), "prompt is not a text"),
    (_changed("pair_paths", chosen="\ud800.png"), "chosen is not Unicode"),
    (_changed("pair_paths", chosen="\0.png"), "chosen is not an image"),
    (
      _changed("pair_structs", chosen={"bytes": None, "path": None}),
      "chosen is not an image",
    ),
    (
      _changed("record_json", responses=[{"content": {"picture": "a.png"}}]),
      "no image: the row has the columns picture",
    ),
    (
      _changed("record_json", responses=[
        {"content": {"image": "a.png"}}, {"content": "a text"}]),
      "content is not an object",
    ),
    ({"prompt": "q", "images": ["a.png"]}, "image_ranked lacks ranking"),
    (_changed("videofeedback", images=[]), "images is not a list of frames"),
    (_changed("videofeedback", images="a.mp4"), "images is not a list of fra"),
    (_changed("videofeedback", images=[3]), "images is not an image"),
    (
      {**schemas.ROWS["videofeedback"][0], "dynamic degree": "high"},
      "dynamic degree is not a number",
    ),
    (_changed("videoalign", VQ="C"), "VQ is no preference: found 'C'; it must"),
    (_changed("videoalign", Overall=1), "Overall is no preference"),
    (_changed("videoalign", path_B="videos/red.mp4"), "chosen equals rejected"),
    (_changed("videoalign", path_A=""), "path_A is not an image"),
  ],
)  # fmt: skip
def test_refuses_with_what_was_found(values, reason):
  with pytest.raises(Refused, match=reason):
    _parse(values)


def _pictured(path):
  tally, told = build.Tally(), []
  found = list(pictured(source_files(path), "auto", tally, told.append))
  return found, tally, told


def test_images_are_decoded_with_their_records(tmp_path):
  found, tally, told = _pictured(schemas.write(tmp_path, "hpdv2_test"))
  assert not told
  assert tally.formats == {"hpdv2": 1}
  (only,) = found
  assert [each.shape for each in only.pixels] == [(6, 8, 3)] * 3
  assert (np.array(only.pixels)[:, 0, 0] == 255 * np.eye(3)).all()


def test_equal_pixels_of_other_bytes_are_left_out(tmp_path):
  schemas.write(tmp_path, "pair_paths")
  (tmp_path / "images/red.bmp").write_bytes(schemas.encoded("red", "BMP"))
  row = {"prompt": "q", "chosen": "images/red.png", "rejected": "b.png"}
  lines = [{**row, "rejected": "images/red.bmp"}, row, {"text": "a"}]
  file = tmp_path / "a.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  found, tally, told = _pictured(file)
  assert not found
  assert tally.dropped == {"images of the same pixels": 1}
  missing, text = told
  assert (missing.row, missing.kind) == (2, "image file cannot be read")
  assert str(tmp_path / "b.png") in missing.reason
  assert "No such file" in missing.reason
  assert text.kind == "texts where images are needed"


def test_texts_are_wanted_where_text_is_trained(tmp_path, make_tokenizer):
  rules = tokenizer.Rules(tokenizer.load(make_tokenizer()))
  path = schemas.write(tmp_path, "pickapic")
  told = []

  def tokens(path):
    files = source_files(path)
    tally = build.Tally()
    return list(
      build.tokenized(files, config.Data(), rules, tally, told.append)
    )

  with pytest.raises(UserError, match=r"pickapic\.parquet:1 .* hold images"):
    tokens(path)
  rows = [
    {"prompt": "q", "chosen": "yes", "rejected": "no"},
    *schemas.ROWS["pair_paths"],
  ]
  file = tmp_path / "mixed.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert len(tokens(file)) == 1
  (refused,) = told
  assert (refused.file, refused.row) == ("mixed.jsonl", 2)
  assert refused.kind == "images where texts are needed"
