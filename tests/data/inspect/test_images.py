"""What the inspector says of made-up preferences among images."""

import base64
import importlib.util
import io
import json
import pathlib
import re

import numpy as np
import PIL.Image
import pytest

from jaxpref.data.inspect import __main__ as command

_spec = importlib.util.spec_from_file_location(
  "make_image_schemas",
  pathlib.Path(__file__).parents[1] / "schemas/make_image_schemas.py",
)
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)


@pytest.fixture
def made(tmp_path):
  schemas.write(tmp_path, "imagereward")
  images = tmp_path / "images"
  (images / "cut.png").write_bytes(schemas.RED[:50])
  PIL.Image.new("RGB", (600, 300), "gray").save(images / "gray.png")

  def row(chosen, rejected, **more):
    sides = {"chosen": chosen, "rejected": rejected}
    paths = {name: f"images/{x}.png" for name, x in sides.items()}
    return {"prompt": "a <b>cat</b>", **paths, **more}

  tied = {"better": 0, "worse": 1, "preference": 0.5}
  content = [{"content": {"image": f"images/{c}.png"}} for c in ("red", "lime")]
  rows = [
    row("gray", "red", score_chosen=3, score_rejected=1),
    row("red", "gray"),
    row("red", "gray"),
    row("red", "cut"),
    row("red", "gone"),
    row("red", "red"),
    {"prompt": "a tie", "responses": content, "comparisons": [tied]},
    *schemas.ROWS["imagereward"],
    {"question": "q"},
  ]
  file = tmp_path / "made.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return file


def _value(out, name):
  (value,) = re.findall(rf"^ +{re.escape(name)}  +(\S+(?: \S+)*)", out, re.M)
  return value


def test_counts_images_without_a_tokenizer(made, capsys):
  assert command.main([str(made)]) == 0
  out = capsys.readouterr().out
  told = {
    "rows": "9",
    "refused": "4 (44.4%)",
    "damaged image": "1",
    "image file cannot be read": "1",
    "chosen equals rejected": "1",
    "unknown columns": "1",
    "examples": "5",
    "images to a prompt": "5 × 2",
    "not decoded": "2",
    "different prompts": "3",
    "different images": "3 (30.0%)",
    "repeated examples": "2 (40.0%)",
    "comparisons": "4",
    "ties": "1 (25.0%)",
    "soft": "0 (0.0%)",
    "not compared": "1 (20.0%)",
    "contradictions": "2",
    "larger image wins": "1 (33.3%)",
    "600 × 300": "3 (30.0%)",
    "8 × 6": "7 (70.0%)",
  }
  for name, value in told.items():
    assert _value(out, name).startswith(value), name
  assert "made.jsonl:4: damaged image:" in out
  assert "tokens" not in out


def test_the_page_shows_pairs_side_by_side(made, tmp_path, capsys):
  html = tmp_path / "page.html"
  assert command.main([str(made), f"--html={html}", "--examples=9"]) == 0
  assert f"Page: {html}" in capsys.readouterr().out
  page = html.read_text()
  found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
  assert len(found) == page.count("src=") == 10
  first = PIL.Image.open(io.BytesIO(base64.b64decode(found[0])))
  assert first.size == (256, 128)
  assert "1. 600 × 300, better than 2: 100%, overall 3" in page
  assert "1. 8 × 6, tie with 2" in page
  assert "a &lt;b&gt;cat&lt;/b&gt;" in page
  assert page.count("<svg") == 2  # of the scores
  assert "data:" not in re.sub(r'src="data:image/jpeg', "", page)


def test_the_page_shows_a_videos_frames_side_by_side(tmp_path):
  path, html = schemas.write(tmp_path, "videofeedback"), tmp_path / "page.html"
  assert command.main([str(path), f"--html={html}", "--examples=9"]) == 0
  page = html.read_text()
  found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
  assert len(found) == 3
  strip = PIL.Image.open(io.BytesIO(base64.b64decode(found[1])))
  assert strip.size == (3 * 8, 6)  # red, black and blue
  colors = np.asarray(strip)[3, 4::8].argmax(axis=1)
  assert colors[[0, 2]].tolist() == [0, 2]
  assert "2. 3 frames, 8 × 6, visual_quality 1" in page


def test_rows_that_cannot_be_read_are_told_why(tmp_path, capsys):
  path = schemas.write(tmp_path, "pickapic_no_images")
  assert command.main([str(path)]) == 0
  assert "no jpg_0: the row holds addresses of" in capsys.readouterr().out


def test_texts_need_a_tokenizer(tmp_path, capsys):
  file = tmp_path / "a.jsonl"
  file.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
  assert command.main([str(file)]) == 2
  assert "--tokenizer=DIR" in capsys.readouterr().err
