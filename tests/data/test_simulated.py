"""The simulated stories: grammar, corpus files and tokenizer."""

import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import transformers

from jaxpref.data import simulated
from jaxpref.errors import UserError
from jaxpref.score.pattern import pattern_score

_SIZE = {"num_stories": 400, "num_comparisons": 200, "seed": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("simulated") / "corpus"
  assert simulated.write_corpus(folder, **_SIZE) == folder
  return folder


@pytest.fixture(scope="module")
def tokenizer(corpus):
  return transformers.AutoTokenizer.from_pretrained(corpus / "tokenizer")


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _hashes(folder):
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in files
  }


def test_judge_tells_the_endings_apart():
  judge = pattern_score(simulated.PREFERRED_ENDING)
  _, happy, sad = zip(*(simulated.story(key) for key in range(1000)))
  assert judge(happy) == [1.0] * len(happy)
  assert judge(sad) == [0.0] * len(sad)
  # A text that says both is not a happy one, nor is one that says nothing.
  assert judge(["Tom was glad. Tom was sad.", "Tom went.", ""]) == [0.0] * 3


def test_every_template_is_drawn_and_judged():
  _, *kinds = zip(*(simulated.story(key) for key in range(600)))
  for kind, endings, matches in zip(("happy", "sad"), kinds, (True, False)):
    for template in simulated._WORDS[kind]:
      parts = re.split(r"\{\w+\}", template)
      drawn = ".+".join(re.escape(part) for part in parts)
      found = [text for text in endings if re.fullmatch(drawn, text)]
      assert found, template
      for text in found:
        assert bool(re.search(simulated.PREFERRED_ENDING, text)) == matches


def test_happy_and_sad_choices_are_as_many():
  # Else one kind would be the likelier one before any preference is taught.
  for happy, sad in (("glad", "sorry"), ("cheered", "cried"),
                     ("kindly", "meanly"), ("happy", "sad")):  # fmt: skip
    assert len(simulated._WORDS[happy]) == len(simulated._WORDS[sad])


def test_story_is_consistent():
  for key in range(300):
    beginning, happy, sad = simulated.story(key)
    for text in (beginning, happy, sad):
      assert text == text.strip()
      assert "{" not in text
      assert text.endswith(".")
    names = set(simulated._SHE + simulated._HE)
    things = set(simulated._WORDS["thing"])
    words = set(re.findall(r"\w+", beginning))
    assert len(words & names) == 1
    assert len(words & things) == 1
    pronouns = {"he", "his", "him"} if words & set(simulated._HE) else {"she"}
    other = {"she", "her"} if "he" in pronouns else {"he", "his", "him"}
    for ending in (happy, sad):
      used = set(re.findall(r"\w+", ending))
      assert used & names <= words & names
      assert used & things <= words & things
      assert not {word.lower() for word in used} & other


def test_key_or_generator():
  assert simulated.story(5) == simulated.story(5) != simulated.story(6)
  rng = np.random.default_rng(5)
  assert simulated.story(rng) == simulated.story(5)
  assert simulated.story(rng) != simulated.story(5)


def test_files(corpus):
  stories = _rows(corpus / "stories.jsonl")
  pairs = _rows(corpus / "comparisons.jsonl")
  assert len(stories) == _SIZE["num_stories"]
  assert len(pairs) == _SIZE["num_comparisons"]
  prompts = [row["prompt"] for row in pairs]
  assert len(set(prompts)) == len(prompts)
  assert {row["prompt"] for row in stories} == {""}
  texts = [row["completion"] for row in stories]
  beginnings = {" ".join(re.findall(r"[^.]+\.", text)[:3]) for text in texts}
  assert not beginnings & set(prompts)

  judge = pattern_score(simulated.PREFERRED_ENDING)
  endings = [re.split(r"(?<=\.) ", text, maxsplit=3)[3] for text in texts]
  assert np.mean(judge(endings)) == 0.5
  assert judge([row["chosen"] for row in pairs]) == [1.0] * len(pairs)
  assert judge([row["rejected"] for row in pairs]) == [0.0] * len(pairs)
  for row in pairs:
    assert row["chosen"][0] == row["rejected"][0] == " "
    assert row["prompt"][-1] == "."


def test_tokenizer(corpus, tokenizer):
  assert len(tokenizer) == simulated.VOCABULARY_SIZE  # any corpus has as many
  row = _rows(corpus / "comparisons.jsonl")[0]
  encoded = tokenizer(
    row["prompt"] + row["chosen"], return_offsets_mapping=True
  )
  ids = encoded["input_ids"]
  assert ids[0] == tokenizer.bos_token_id
  assert tokenizer.eos_token_id not in ids
  assert len({tokenizer.bos_token_id, tokenizer.eos_token_id,
              tokenizer.pad_token_id}) == 3  # fmt: skip
  decoded = tokenizer.decode(ids, skip_special_tokens=True)
  assert decoded == row["prompt"] + row["chosen"]
  # A token begins exactly where the response does, at its space.
  starts = [start for start, _ in encoded["offset_mapping"][1:]]
  assert len(row["prompt"]) in starts
  for start, end in encoded["offset_mapping"][1:]:
    assert " " not in (row["prompt"] + row["chosen"])[start:end].lstrip(" ")


def test_unknown_words_round_trip(tokenizer):
  text = "Zwölf Boxkämpfer\n\tjagen Viktor 🦊."
  ids = tokenizer(text)["input_ids"]
  assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_short(corpus, tokenizer):
  longest = {"prompt": 45, "chosen": 35, "rejected": 35}
  for row in _rows(corpus / "comparisons.jsonl"):
    for key, limit in longest.items():
      assert len(tokenizer(row[key])["input_ids"]) <= limit
  texts = [row["completion"] for row in _rows(corpus / "stories.jsonl")]
  lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
  assert max(lengths) <= 80
  words = set(re.findall(r"(?<= )\w+", "\n".join(texts)))
  split = [w for w in words if len(tokenizer.tokenize(" " + w)) > 1]
  assert not split  # every word is one token


def test_deterministic_in_another_process(corpus, tmp_path):
  code = (
    "import sys; from jaxpref.data import simulated; simulated.write_corpus("
    f"sys.argv[1], **{_SIZE!r})"
  )
  folder = tmp_path / "again"
  environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
  subprocess.run(
    [sys.executable, "-c", code, str(folder)], check=True, env=environment
  )
  assert _hashes(folder) == _hashes(corpus)
  assert os.listdir(tmp_path) == ["again"]  # nothing temporary is left


def test_seed_changes_the_files(tmp_path):
  size = {"num_stories": 20, "num_comparisons": 10}
  one = simulated.write_corpus(tmp_path / "one", **size, seed=0)
  two = simulated.write_corpus(tmp_path / "two", **size, seed=1)
  assert (one / "stories.jsonl").read_bytes() != (
    two / "stories.jsonl"
  ).read_bytes()


def test_second_call_does_nothing_unless_arguments_differ(tmp_path):
  folder = tmp_path / "corpus"
  size = {"num_stories": 20, "num_comparisons": 10}
  simulated.write_corpus(folder, **size, seed=0)
  before = (folder / "stories.jsonl").stat()
  simulated.write_corpus(folder, **size, seed=0)
  after = (folder / "stories.jsonl").stat()
  assert (before.st_ino, before.st_mtime_ns) == (
    after.st_ino,
    after.st_mtime_ns,
  )
  first = _hashes(folder)
  simulated.write_corpus(folder, **size, seed=1)
  assert _hashes(folder) != first
  assert os.listdir(tmp_path) == ["corpus"]


def test_other_peoples_folder_is_left_alone(tmp_path):
  (tmp_path / "thesis.txt").write_text("mine")
  with pytest.raises(UserError, match="holds something else"):
    simulated.write_corpus(tmp_path, num_stories=2, num_comparisons=1, seed=0)
  assert os.listdir(tmp_path) == ["thesis.txt"]
