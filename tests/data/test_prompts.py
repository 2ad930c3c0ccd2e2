"""Prompts without images: which rows hold some, and what is encoded of them."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from jaxpref import config
from jaxpref.data import build, formats, images
from jaxpref.data.images import prepare_images
from jaxpref.data.prompts import prepare_prompts
from jaxpref.data.read import read_rows, source_files
from jaxpref.errors import UserError
from jaxpref.models.sdxl import pipeline
from jaxpref.models.sdxl.image_model import open_image_model
from jaxpref.sample.prompts import read_prompts

_spec = importlib.util.spec_from_file_location(
  "make_image_schemas",
  pathlib.Path(__file__).parent / "schemas/make_image_schemas.py",
)
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)

TEXT = b"\xef\xbb\xbf a cat \r\n\n  \r\na \xe2\x80\xa8dog\xe2\x98\x83"
PROMPTS = [" a cat ", "a \u2028dog\u2603"]


def _found(path, name="auto"):
  """Prompts, formats, and what is refused."""
  tally, told = build.Tally(), []
  files = source_files(path)
  found = build.records(files, name, tally, told.append, prompts=True)
  return [each.prompt for each in found], tally.formats, told


def test_a_prompt_a_line(tmp_path):
  """As the stage `sample` reads the same file."""
  file = tmp_path / "prompts.txt"
  file.write_bytes(TEXT)
  assert _found(file)[:2] == (PROMPTS, {"prompts": 2})
  assert [row.number for row in read_rows(source_files(file))] == [1, 4]
  assert read_prompts(file) == PROMPTS
  (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "a bird"}) + "\n")
  assert _found(tmp_path)[0] == ["a bird"]  # in a folder it is no data


def test_a_line_that_is_no_text_is_refused(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_bytes(b"a cat\na \xff dog\n\na bird\n")
  prompts, _, told = _found(file)
  assert prompts == ["a cat", "a bird"]
  assert [each[:3] for each in told] == [("prompts.txt", 2, "not UTF-8")]
  with pytest.raises(UserError, match=r"prompts\.txt, line 2: not UTF-8"):
    read_prompts(file)


@pytest.mark.parametrize(
  ("name", "text", "found"),
  [
    ("list.json", '[{"caption": "a cat"}, {"caption": "a dog"}]', 2),
    ("rows.jsonl", '{"prompt": "a cat", "caption": "no"}\n', 1),
    ("table.csv", "caption\na cat\na dog\n", 2),
    ("plain", "a cat\na dog\n", 2),
    ("no.jsonl", '{"prompt": "a cat"}\n{"text": "a dog"}\n', "line 2: .*text"),
    ("deep.jsonl", "[" * 9000, "line 1: not JSON"),
    ("nulls.jsonl", '{"prompt": null, "caption": "a cat"}\n', 1),
    ("null.csv", "caption,seed\na cat,1\n,2\n", "line 2: .*caption, seed"),
    ("none.jsonl", "\n", "holds no prompt"),
    ("none.txt", "\n", "holds no prompt"),
    ("none", "\n", "holds no prompt"),
  ],
)
def test_what_is_sampled_may_be_in_any_container(tmp_path, name, text, found):
  file = tmp_path / name
  file.write_text(text)
  if isinstance(found, int):
    assert read_prompts(file) == ["a cat", "a dog"][:found]
  else:
    with pytest.raises(UserError, match=found):
      read_prompts(file)


@pytest.mark.parametrize("name", ["prompts", "captions", "pickapic_no_images"])
def test_rows_without_images(tmp_path, name):
  path = schemas.write(tmp_path, name)
  prompts, found, told = _found(path)
  assert prompts == ["a cat", "a dog"][: len(schemas.ROWS[name])]
  assert set(found) == {"prompts"}
  assert not told
  assert "prompts (" in formats.explain(found)
  assert _found(path, "prompts")[0] == prompts


def test_rows_with_images_keep_their_format(tmp_path):
  """Unless data.format says that the prompts are all that counts."""
  path = schemas.write(tmp_path, "videofeedback")
  assert _found(path)[:2] == (["a cat", "a dog"], {"videofeedback": 3})
  path = schemas.write(tmp_path, "pickapic")
  assert _found(path)[:2] == (["a cat"] * 4, {"pickapic": 4})
  assert _found(path, "prompts")[:2] == (["a cat"] * 4, {"prompts": 4})


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ({"prompt": " "}, "empty prompt"),
    ({"prompt": None}, "prompt is null"),
    ({"prompt": 3}, "prompt is not a text"),
    ({"caption": ["a"]}, "caption is not a text"),
    ({"prompt": "\ud800"}, "prompt is not Unicode"),
    ({"title": "a cat"}, "unknown columns"),
  ],
)
def test_malformed_rows(tmp_path, row, reason):
  file = tmp_path / "a.jsonl"
  rows = [{"prompt": "a cat"}, row, {"caption": "a dog"}]
  file.write_text("".join(json.dumps(each) + "\n" for each in rows))
  prompts, _, told = _found(file)
  assert prompts == ["a cat", "a dog"]
  assert [(each.file, each.row) for each in told] == [("a.jsonl", 2)]
  assert reason in told[0].reason


def test_a_column_that_is_missing_is_named(tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text(json.dumps({"title": "a cat"}) + "\n")
  ((_, _, _, reason),) = _found(file, "prompts")[2]
  assert "no prompt: the row has the columns title" in reason


@pytest.fixture(scope="module")
def model(sd_folder):
  settings = config.Model(family="sdxl", path=str(sd_folder), dtype="float32")
  return open_image_model(settings)


def test_of_prompts_alone_texts_are_encoded(model, tmp_path):
  """The same as of data with images, none of which is looked at."""
  rows = [("a cat", "red"), ("a dog", "lime"), ("a cat", "blue")]
  schemas.write(tmp_path, "record_json")  # images, beside it
  pairs, text = tmp_path / "pairs.jsonl", tmp_path / "prompts.txt"
  lines = [
    {"prompt": prompt, "chosen": f"images/{x}.png", "rejected": "x.png"}
    for prompt, x in rows
  ]
  lines.append({"prompt": "a bird", "chosen": "a text", "rejected": "another"})
  pairs.write_text("".join(json.dumps(each) + "\n" for each in lines))
  text.write_text("".join(f"{prompt}\n" for prompt, _ in rows))
  said = []
  data = config.Data(max_rejected=0.3)
  make = lambda path: prepare_prompts(
    data, str(path), model, said.append, tmp_path / "cache"
  )
  found, other = make(text), make(pairs)
  assert [len(found), len(other)] == [3, 3]
  assert not said
  assert "3 prompts, 2 of them different" in found.summary()
  assert "1 texts where images are needed refused" in other.summary()
  assert not len(other.better)
  for i in range(-1, 3):
    if i >= 0:
      assert found.caption(i) == other.caption(i) == rows[i][0]
    for one, two in zip(found.text(i), other.text(i), strict=True):
      np.testing.assert_array_equal(one, two)
  assert found.image(2).mean.shape == (8, 8, 4)
  names = {each.name for each in (tmp_path / "cache/encoded").glob("*/*")}
  assert names == {"captions-000000.array_record"}
  part = found.select([2])
  assert part.caption(0) == "a cat"
  assert part.fingerprint != found.fingerprint


def test_prompts_that_are_cut_are_counted(model, tmp_path, monkeypatch):
  """Each time, though the tokenizer is asked once; and no autoencoder is."""
  file, said, read = tmp_path / "prompts.txt", [], []
  file.write_text("a cat\n" + "word " * 100)
  load = pipeline.load_part

  def spied(folder, *args, **given):
    read.append(folder.name)
    return load(folder, *args, **given)

  monkeypatch.setattr(pipeline, "load_part", spied)
  for _ in range(2):
    prepare_prompts(
      config.Data(), str(file), model, said.append, tmp_path / "cache"
    )
    monkeypatch.setattr(images, "tokenize", pytest.fail)
  assert read == ["text_encoder"]
  assert said[0] == said[1]
  assert "1 of the different captions are longer than the 77" in said[-1]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_where_images_are_needed_prompts_are_refused(model, tmp_path, name):
  file = tmp_path / name
  line = "a cat" if name.endswith("txt") else json.dumps({"prompt": "a cat"})
  file.write_text(f"{line}\n")
  make = lambda data: prepare_images(
    data, str(file), model, print, tmp_path / "cache"
  )
  with pytest.raises(UserError, match="alone hold no answer to learn from"):
    make(config.Data())
  told = "is 'prompts', and prompts alone hold no answer"
  with pytest.raises(UserError, match=told):
    make(dataclasses.replace(config.Data(), format="prompts"))
