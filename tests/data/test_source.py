"""Folders, patterns, what `datasets` saves, and URLs."""

import json
import shutil

import fsspec
import pytest

from jaxpref import config
from jaxpref.data.prepared import prepare
from jaxpref.data.read import read_rows, source_files
from jaxpref.errors import UserError


def _line(text):
  return json.dumps({"text": text}) + "\n"


def _found(path):
  return [
    (row.file, row.values["text"]) for row in read_rows(source_files(path))
  ]


@pytest.fixture
def shards(tmp_path):
  for name in ("a/train-0.jsonl", "a/train-1.jsonl", "b/train-0.jsonl"):
    (file := tmp_path / name).parent.mkdir(exist_ok=True)
    file.write_text(_line(name))
  (tmp_path / "a/test-0.jsonl").write_text(_line("test"))
  (tmp_path / "a/notes.md").write_text("not data")
  return tmp_path


def test_a_pattern_names_files_apart_by_their_folders(shards):
  assert _found(shards / "a/train-*.jsonl") == [
    ("train-0.jsonl", "a/train-0.jsonl"),
    ("train-1.jsonl", "a/train-1.jsonl"),
  ]
  assert [file for file, _ in _found(f"{shards}/**/train-0*")] == [
    "a/train-0.jsonl",
    "b/train-0.jsonl",
  ]
  (shards / "a/[odd].jsonl").write_text(_line("odd"))
  assert _found(shards / "a/[odd].jsonl") == [("[odd].jsonl", "odd")]


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    ("a/nothing-*", "does not exist, nor does it match a file"),
    ("a/*.md", "matches no file whose name ends in"),
    ("", r"holds no file .* holds the folders a, b\."),
  ],
)
def test_a_pattern_or_folder_without_data_is_named(shards, pattern, message):
  with pytest.raises(UserError, match=message):
    source_files(shards / pattern)


@pytest.fixture
def remote(shards):
  """The files in fsspec's file system in memory, as a store elsewhere."""
  memory = fsspec.filesystem("memory")
  memory.put(str(shards / "a"), "/bucket/a", recursive=True)
  yield "memory://bucket/a"
  memory.rm("/bucket", recursive=True)


def test_urls_are_files_folders_and_patterns_too(shards, remote):
  assert _found(remote) == _found(shards / "a")
  assert _found(f"{remote}/train-*.jsonl") == _found(shards / "a/train-*.jsonl")
  assert _found(f"{remote}/test-0.jsonl") == [("test-0.jsonl", "test")]
  (file,) = source_files(f"{remote}/test-0.jsonl")
  assert str(file) == "memory:///bucket/a/test-0.jsonl"
  with pytest.raises(UserError, match=r"'memory://bucket/b' does not exist"):
    source_files("memory://bucket/b")
  with pytest.raises(UserError, match=r"xyz://b cannot be opened.*package"):
    source_files("xyz://b")


def test_a_url_is_prepared_again_when_its_file_changes(
  remote, tmp_path, make_tokenizer
):
  settings, tokenizer = config.Data(max_length=64), make_tokenizer()
  read = lambda: prepare(settings, remote, tokenizer, tmp_path / "cache")
  before = read()
  assert read().folder == before.folder
  fsspec.filesystem("memory").pipe("/bucket/a/test-0.jsonl", b'{"text": "x"}')
  assert read().folder != before.folder


def test_a_url_stays_a_url(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  tree = {"data": {"path": "gs://bucket/a", "eval_path": "b"}}
  built = config.with_absolute_paths(config.build(tree))
  assert built.data.path == "gs://bucket/a"
  assert built.data.eval_path == str(tmp_path / "b")


def test_a_folder_of_datasets_is_what_its_state_lists(tmp_path):
  import datasets

  saved = datasets.Dataset.from_list([{"text": str(i)} for i in range(5)])
  saved.save_to_disk(str(tmp_path / "train"), num_shards=2)
  first = next((tmp_path / "train").glob("*.arrow"))
  shutil.copy(first, tmp_path / "train/cache-1.arrow")
  assert [text for _, text in _found(tmp_path / "train")] == list("01234")
  splits = datasets.DatasetDict({"train": saved, "test": saved})
  splits.save_to_disk(str(tmp_path / "both"))
  with pytest.raises(UserError, match=r"holds the folders test, train\."):
    source_files(tmp_path / "both")
