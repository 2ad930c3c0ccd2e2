"""Samples by prompt, before and after."""

import base64
import io
import pathlib

from PIL import Image
import pytest

from jaxpref.report.samples import fold, plain, prompts

NOWHERE = pathlib.Path("nowhere")


def _sample(prompt, response, step, **more):
  return {"prompt": prompt, "response": response, "step": step, **more}


def test_side_by_side():
  found = prompts(
    [
      _sample("b", " one", 0),
      _sample("a", "two", 0),
      _sample("b", "midway", 5),
      _sample("a", "three", 10),
      _sample("b", "four\n", 10, scores={"pattern": 1.0, "odd": None}),
      _sample("b", "five", 10),
    ],
    NOWHERE,
  )
  assert [prompt.text.full for prompt in found] == ["b", "a"]
  (before, first), (after, second) = found[0].columns
  assert (before, after) == ("Before training", "After 10 steps")
  assert [sample.text.full for sample in first] == ["one"]
  assert [sample.text.full for sample in second] == ["four", "five"]
  assert second[0].scores == {"pattern": "1", "odd": "–"}


def test_only_before():
  (prompt,) = prompts([_sample("a", "x", 0)], NOWHERE)
  assert [heading for heading, _ in prompt.columns] == ["Before training"]
  assert prompts([], NOWHERE) == []


def test_images_of_the_run_and_no_others(tmp_path):
  folder = tmp_path / "samples"
  (folder / "step_000004").mkdir(parents=True)
  Image.new("RGB", (16, 8), "red").save(folder / "step_000004" / "00000.png")
  Image.new("RGB", (16, 8), "red").save(tmp_path / "secret.png")
  names = ("step_000004/00000.png", "step_000004/00001.png", "../secret.png")
  found = prompts([_sample("a", name, 4) for name in names], folder)
  image, *others = (sample.image for sample in found[0].columns[1][1])
  head, _, data = image.partition(",")
  assert head == "data:image/webp;base64"
  with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
    assert shown.size == (256, 128)
  assert others == ["", ""]


def test_long_text_is_folded():
  text = "word " * 300
  assert fold("short").excerpt == ""
  folded = fold(text)
  assert folded.full == text
  assert folded.excerpt.endswith("word …")
  assert len(folded.excerpt) < 330


@pytest.mark.parametrize(
  ("content", "text"),
  [
    (" a\n", "a"),
    ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "?"}],
     "user: hi\n\nassistant: ?"),
    (None, ""),
    (3, "3"),
  ],
)  # fmt: skip
def test_plain(content, text):
  assert plain(content) == text
