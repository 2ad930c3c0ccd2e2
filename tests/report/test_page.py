"""The page as a whole: what it shows, and what it does without."""

import html
from html.parser import HTMLParser
import json
import os
import random
import re

import pytest

from jaxpref import config
from jaxpref.report import write_report

_VOID = {"meta", "link", "img", "br"}


class _Outline(HTMLParser):
  """Fails for tags that do not nest; keeps text and attributes."""

  def __init__(self):
    super().__init__()
    self.open, self.text, self.headings, self.attributes = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.attributes += [(tag, *attr) for attr in attrs]
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.attributes += [(tag, *attr) for attr in attrs]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("style", "script"):
      self.text.append(data)
      if self.open[-1] in ("h1", "h2", "h3"):
        self.headings.append(data)


def _read(page):
  outline = _Outline()
  outline.feed(page.read_text(encoding="utf-8"))
  assert not outline.open
  text = " ".join(" ".join(outline.text).replace("\xa0", " ").split())
  return outline, text


def test_shows_the_run(run_folder):
  page = write_report(run_folder)
  assert page == run_folder / "report.html"
  outline, text = _read(page)
  assert "likelier one in 95.3 % of held-out comparisons, from 50.0 %" in text
  assert "all ties 96.9 % ± 2.2 %" in text
  assert "0.6931 0.2931 −0.4" in text
  assert "16.7 % ± 15.2 % 100.0 % +83.3 points" in text  # 1 and 6 of 6
  assert {
    "kind endings", "Before and after", "Samples", "Training", "Data", "Loss",
    "Accuracy", "Reward margin", "Rewards", "Log-probability of answers",
    "Gradient norm", "Learning rate", "Speed", "Config and rerun",
  } <= set(outline.headings)  # fmt: skip
  assert "ln 2" in text
  assert "comparisons 1,234,567 64" in text
  assert "refused: empty response 4 –" in text
  assert "warmup_steps 3" in text
  assert "dpo, beta 0.25" in text
  assert "not finite" not in text


def test_nothing_comes_from_elsewhere(run_folder):
  page = write_report(run_folder)
  source = page.read_text(encoding="utf-8")
  named = re.sub(r' xmlns(:xlink)?="[^"]*"', "", source)  # names, not links
  assert not re.search(r"https?:|url\([^#]|@import|<script", named)
  outline, _ = _read(page)
  loads = {"src", "href", "srcset", "data", "xlink:href"}
  links = [value for _, key, value in outline.attributes if key in loads]
  assert all(link.startswith("#") for link in links)


def test_charts_share_no_id(run_folder):
  outline, _ = _read(write_report(run_folder))
  ids = [value for _, key, value in outline.attributes if key == "id"]
  assert ids
  assert len(set(ids)) == len(ids)


def test_long_run_gives_a_small_page(run_folder):
  path = run_folder / "metrics.jsonl"
  first, *rows = map(json.loads, path.read_text().splitlines())
  noise = random.Random(0)
  with path.open("w") as file:
    for step in range(2_000):
      row = {key: value + noise.gauss() for key, value in rows[-1].items()}
      file.write(json.dumps({**first, **row, "step": step}) + "\n")
  page = write_report(run_folder)
  assert page.stat().st_size < 500_000


def test_held_out_examples_of_the_training_file(run_folder):
  stats = {
    "train": {"examples": 2312, "refused": {}},
    "eval": {"examples": 256},
  }
  (run_folder / "data.json").write_text(json.dumps(stats))
  _, text = _read(write_report(run_folder))
  assert "256 of its examples are held out" in text
  assert "train examples 2,312 refused none" in text


def test_samples_are_escaped_with_their_line_breaks(run_folder):
  source = write_report(run_folder).read_text(encoding="utf-8")
  assert "text &lt;0&gt; at 20\n\nend" in source
  assert "<0>" not in source


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "'\"><b>"])
def test_nothing_of_the_run_becomes_markup(run_folder, hostile):
  row = {"prompt": hostile, "response": hostile, "step": 0, hostile: None,
         "scores": {hostile: 1.0}}  # fmt: skip
  (run_folder / "samples" / "samples.jsonl").write_text(json.dumps(row))
  with (run_folder / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 21, hostile: None}))
  settings = {"loss": {"name": hostile, hostile: hostile}, hostile: hostile}
  (run_folder / "config.json").write_text(json.dumps(settings))
  (run_folder / "data.json").write_text(json.dumps({hostile: {hostile: 1}}))
  page = write_report(run_folder)
  assert hostile not in page.read_text(encoding="utf-8")
  _, text = _read(page)
  assert text.count(hostile) >= 8


@pytest.mark.parametrize(
  "missing",
  ["config.json", "metrics.jsonl", "samples/samples.jsonl", "data.json"],
)
def test_does_without_a_file(run_folder, missing):
  (run_folder / missing).unlink()
  outline, _ = _read(write_report(run_folder))
  heading = {
    "config.json": "Config and rerun", "metrics.jsonl": "Training",
    "samples/samples.jsonl": "Samples", "data.json": "Data",
  }  # fmt: skip
  assert heading.pop(missing) not in outline.headings
  assert set(heading.values()) <= set(outline.headings)


def test_empty_folder(tmp_path):
  _, text = _read(write_report(tmp_path))
  assert "No result has been logged yet." in text


def test_run_without_comparisons(run_folder):
  (run_folder / "metrics.jsonl").write_text(
    '{"step": 0, "eval/loss": 3.5}\n{"step": 1, "loss": 3.0}\n'
    '{"step": 2, "loss": 2.0, "eval/loss": 2.25, "pairs_per_second": 0.0, '
    '"tokens_per_second": 9.0}\n'
  )
  (run_folder / "config.json").write_text('{"loss": {"name": "sft"}}')
  (run_folder / "samples" / "samples.jsonl").unlink()
  outline, text = _read(write_report(run_folder))
  assert "Held-out loss: 2.25, from 3.5." in text
  assert "tokens a second" in text
  assert not {"Reward margin", "Rewards", "Accuracy"} & set(outline.headings)
  assert "ln 2" not in text


def test_values_that_are_not_finite(run_folder):
  with (run_folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 21, "loss": NaN, "grad_norm": Infinity}\n')
    file.write('{"step": 22, "loss": null, "eval/loss": -Infinity}\n')
    file.write('{"step": 23, "los')  # killed while writing
  page = write_report(run_folder)
  _, text = _read(page)
  assert "loss (first at step 21), grad_norm (first at step 21)" in text
  assert not re.search(r"\bnan\b|\binf", page.read_text(encoding="utf-8"))


def test_surrogates_and_broken_files_do_not_stop_it(run_folder):
  row = '{"prompt": "p", "response": "\\ud800", "step": 0}\n'
  (run_folder / "samples" / "samples.jsonl").write_text(row)
  (run_folder / "data.json").write_text("[1, 2")
  write_report(run_folder)


def test_replaced_at_once(run_folder, monkeypatch):
  page = write_report(run_folder)
  before = page.read_bytes()
  names = sorted(os.listdir(run_folder))
  write_report(run_folder)
  assert page.read_bytes() == before  # the same run gives the same page
  assert sorted(os.listdir(run_folder)) == names
  with (run_folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 30, "loss": 0.1}\n')

  def killed(source, target):
    assert target == page
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    write_report(run_folder)
  assert page.read_bytes() == before


def test_rerun_gives_the_same_config(run_folder):
  source = write_report(run_folder).read_text(encoding="utf-8")
  code = html.unescape(
    re.search(r"<code>(import json.*?)</code>", source, re.S)[1]
  )
  (run_folder / "rerun.py").write_text(code)
  settings, _ = config.load(str(run_folder / "rerun.py"), {})
  saved = json.loads((run_folder / "config.json").read_text())
  assert json.loads(json.dumps(config.to_dict(settings))) == saved
  _, text = _read(run_folder / "report.html")
  assert f"--config='{run_folder / 'rerun.py'}'" in text  # it has a space
