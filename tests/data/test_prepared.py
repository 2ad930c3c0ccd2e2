import gzip
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxpref import config
from jaxpref.data import build, prepared, tokenizer
from jaxpref.data.prepared import Prepared, prepare, split_holdout
from jaxpref.errors import UserError

ROWS = [
  {"prompt": f"Q{i}:", "chosen": " yes" + "!" * i, "rejected": " no"}
  for i in range(5)
]


def _write(file: pathlib.Path, rows) -> str:
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(file)


@pytest.fixture
def source(tmp_path, make_tokenizer):
  """What prepare() takes but the settings: path, tokenizer, cache folder."""
  path = _write(tmp_path / "pairs.jsonl", ROWS)
  return path, make_tokenizer(), tmp_path / "cache"


def _tree(examples):
  """Everything of a Prepared as lists, by example."""
  first, pairs = examples.first_response, examples.first_comparison
  return [
    (
      examples.ids[i],
      examples.prompt(i).tolist(),
      [examples.response(j).tolist() for j in range(first[i], first[i + 1])],
      [
        (examples.better[c] - first[i], examples.worse[c] - first[i])
        for c in range(pairs[i], pairs[i + 1])
      ],
    )
    for i in range(len(examples))
  ]


def _refused(examples):
  lines = examples.rejected_file.read_text().splitlines()
  return [json.loads(line) for line in lines]


def _whole(cache: pathlib.Path) -> list[pathlib.Path]:
  return [each for each in cache.iterdir() if not each.name.startswith(".")]


@pytest.fixture(scope="session")
def harmless(shared, tmp_path_factory):
  return prepare(
    config.Data(max_length=512),
    str(shared / "data/hh-harmless-test.jsonl.gz"),
    str(shared / "models/stories260K"),
    tmp_path_factory.mktemp("cache"),
  )


def test_counts_of_the_real_comparisons(harmless):
  stats = harmless.stats
  assert stats["rows"] == 2312
  assert stats["refused"] == {"prompts differ": 5, "empty response": 4}
  assert stats["dropped"] == {"longer than max_length": 697}
  assert stats["examples"] == len(harmless) == 2312 - 9 - 697
  assert stats["responses"] == 2 * len(harmless)
  assert stats["tokens"] == 510_378
  assert stats["boundary_split"] == 0
  refused = _refused(harmless)
  assert len(refused) == 9
  assert all(r["file"] == "hh-harmless-test.jsonl.gz" for r in refused)
  assert "9 refused (" in harmless.summary()
  assert "697 dropped (697 longer than max_length)" in harmless.summary()
  assert "data.format is hh (2312 rows" in harmless.summary()


def test_the_real_comparisons_can_be_read_back(shared, harmless):
  stories = tokenizer.load(shared / "models/stories260K")
  with gzip.open(shared / "data/hh-harmless-test.jsonl.gz") as lines:
    rows = [json.loads(line) for line in lines]
  # Not every character is in the vocabulary of 512; those of ASCII are.
  for i in range(0, len(harmless), 200):
    row = rows[int(harmless.ids[i].rpartition(":")[2]) - 1]
    for j, name in (
      (harmless.better[i], "chosen"),
      (harmless.worse[i], "rejected"),
    ):
      ids = [*harmless.prompt(i)[1:], *harmless.response(j)[:-1]]
      assert harmless.response(j)[-1] == stories.eos_token_id
      if row[name].isascii():
        assert stories.decode(ids).lstrip(" ") == row[name]
  longest = harmless.response_lengths.reshape(-1, 2).max(1)
  assert (harmless.prompt_lengths + longest).max() == 512


def test_holds_what_the_rows_say(source):
  examples = prepare(config.Data(max_length=50), *source)
  decode = tokenizer.load(source[1]).decode
  assert _tree(examples)[3][0] == "pairs.jsonl:4"
  for i, row in enumerate(ROWS):
    _, prompt, responses, comparisons = _tree(examples)[i]
    assert decode(prompt) == "<s>" + row["prompt"]
    texts = [row["chosen"] + "</s>", row["rejected"] + "</s>"]
    assert [decode(each) for each in responses] == texts
    assert comparisons == [(0, 1)]
  for name in ("prompt_lengths", "response_lengths", "first_response",
               "better", "worse", "first_comparison"):  # fmt: skip
    assert getattr(examples, name).dtype == np.int32
  for name in ("preference", "weight"):
    np.testing.assert_array_equal(getattr(examples, name), np.ones(5))
    assert getattr(examples, name).dtype == np.float32
  assert (examples.prompt(0).dtype, examples.response(0).dtype) == (
    np.int32,
  ) * 2


def test_a_second_time_nothing_is_read_but_the_hash(source, monkeypatch):
  before = prepare(config.Data(max_length=50), *source)
  for module, name in [(tokenizer, "load"), (build.read, "read_rows")]:
    monkeypatch.setattr(module, name, None)
  # Neither the share allowed nor the packing changes what is prepared.
  after = prepare(
    config.Data(max_length=50, max_rejected=0.0, row_length=64), *source
  )
  assert after.folder == before.folder
  assert _tree(after) == _tree(before)
  assert after.summary() == before.summary()


@pytest.mark.parametrize(
  "change",
  ["source", "file name", "tokenizer", "max_length", "max_prompt_length",
   "truncate", "format", "rules"],
)  # fmt: skip
def test_a_change_is_prepared_anew(source, monkeypatch, change):
  path, folder, cache = source
  settings = {"max_length": 50}
  before = prepare(config.Data(**settings), *source)
  if change == "source":
    _write(pathlib.Path(path), [*ROWS[:4], {**ROWS[4], "chosen": " yes"}])
  elif change == "file name":
    path = str(
      pathlib.Path(path).rename(pathlib.Path(path).with_name("b.jsonl"))
    )
  elif change == "tokenizer":
    with open(pathlib.Path(folder) / "tokenizer_config.json", "a") as file:
      file.write(" ")
  elif change == "rules":
    monkeypatch.setattr(prepared, "RULES_VERSION", prepared.RULES_VERSION + 1)
  else:
    settings[change] = {
      "max_length": 51, "max_prompt_length": 9, "truncate": "keep_end",
      "format": "explicit",
    }[change]  # fmt: skip
  after = prepare(config.Data(**settings), path, folder, cache)
  assert after.folder != before.folder
  assert len(_whole(cache)) == 2
  # What the model sees changed with the source only.
  assert (after.fingerprint == before.fingerprint) == (change != "source")


def test_the_tokenizer_of_a_model_folder_does_not_hash_weights(source):
  before = tokenizer.fingerprint(source[1])
  (pathlib.Path(source[1]) / "model.safetensors").write_bytes(b"weights")
  assert tokenizer.fingerprint(source[1]) == before
  (pathlib.Path(source[1]) / "chat_template.jinja").write_text("x")
  assert tokenizer.fingerprint(source[1]) != before


def test_an_interrupted_preparation_leaves_nothing(source, monkeypatch):
  def stop(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(build.text, "tokenize_ahead", stop)
    with pytest.raises(KeyboardInterrupt):
      prepare(config.Data(max_length=50), *source)
  assert not list(source[2].iterdir())
  assert len(prepare(config.Data(max_length=50), *source)) == 5


HANG = """
import pathlib, sys, time
from jaxpref import config
from jaxpref.data import build, prepared

def stop(*args):
  print("reached", flush=True)
  time.sleep(600)

build.tokenizer.load = lambda folder: None  # saves the seconds of importing it
build.text.tokenize_ahead = stop
path, folder, cache = sys.argv[1:]
prepared.prepare(config.Data(max_length=50), path, folder, pathlib.Path(cache))
"""


def test_a_killed_preparation_is_not_taken_for_a_cache(source):
  command = [sys.executable, "-c", HANG, *map(str, source)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b"reached\n"
    process.kill()
  assert len(list(source[2].iterdir())) == 1
  assert not _whole(source[2])
  examples = prepare(config.Data(max_length=50), *source)
  assert len(examples) == 5
  assert _whole(source[2]) == [examples.folder]


def test_two_processes_at_once_are_harmless(source, monkeypatch):
  write, others = build.write_folder, []

  def write_second(*args):
    write(*args)
    if not others:  # another process does the whole of it meanwhile
      others.append(None)
      others.append(prepare(config.Data(max_length=50), *source))

  monkeypatch.setattr(prepared, "write_folder", write_second)
  mine = prepare(config.Data(max_length=50), *source)
  assert _tree(mine) == _tree(others[1])
  assert list(source[2].iterdir()) == [mine.folder]


@pytest.mark.parametrize("file", ["data.safetensors", "manifest.json"])
def test_a_damaged_cache_is_made_again(source, file):
  examples = prepare(config.Data(max_length=50), *source)
  expected = _tree(examples)
  damaged = examples.folder / file
  damaged.write_bytes(damaged.read_bytes()[:-4])
  again = prepare(config.Data(max_length=50), *source)
  assert _tree(again) == expected
  assert list(source[2].iterdir()) == [again.folder]


def test_the_cache_is_where_the_variable_says(source, monkeypatch, tmp_path):
  monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "elsewhere"))
  examples = prepare(config.Data(max_length=50), *source[:2])
  assert examples.folder.parent == tmp_path / "elsewhere/prepared"


def test_a_cache_that_cannot_be_written_is_named(source, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"file.*set JAXPREF_CACHE"):
    prepare(config.Data(max_length=50), *source[:2], tmp_path / "file")


def test_arrays_are_a_safetensors_file(source):
  from safetensors.numpy import load_file

  examples = prepare(config.Data(max_length=50), *source)
  loaded = load_file(examples.folder / "data.safetensors")
  np.testing.assert_array_equal(
    loaded["response_lengths"], examples.response_lengths
  )
  assert loaded["tokens"].size == examples.stats["tokens"]


def test_refusals_beyond_the_share_allowed_stop(source):
  path, *rest = source
  rows = [*ROWS, {"prompt": "q", "chosen": "a"}, {"chosen": None}]
  with open(path, "w") as file:
    file.write("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
  with pytest.raises(UserError) as error:
    prepare(config.Data(max_length=50, max_rejected=0.3), path, *rest)
  message = str(error.value)
  for part in (
    "3 of 8 rows are refused (1 no rejected, 1 chosen is null, 1 not JSON)",
    "data.max_rejected=0.3 allows 2",
    "pairs.jsonl:6: no rejected",
    "pairs.jsonl:8: not JSON: Expecting property name",
    "raise config.data.max_rejected",
  ):
    assert part in message
  allowed = config.Data(max_length=50, max_rejected=0.375)
  examples = prepare(allowed, path, *rest)
  assert len(examples) == 5
  assert [refusal["row"] for refusal in _refused(examples)] == [6, 7, 8]


def test_one_refusal_is_too_many_where_none_is_allowed(source):
  path, *rest = source
  _write(pathlib.Path(path), [*ROWS, {**ROWS[0], "rejected": ""}])
  with pytest.raises(UserError, match=r"pairs.jsonl:6: empty response"):
    prepare(config.Data(max_length=50, max_rejected=0.0), path, *rest)


def test_nothing_left_says_how_long_the_examples_are(source):
  with pytest.raises(UserError) as error:
    prepare(config.Data(max_length=5), *source)
  message = str(error.value)
  for part in (
    "no example is left of 5 rows (5 longer than max_length)",
    "has 8 tokens at least, 10 in the median and 12 at most",
    "Raise config.data.max_length",
  ):
    assert part in message


def test_select_numbers_anew(source):
  examples = prepare(config.Data(max_length=50), *source)
  tree = _tree(examples)
  part = examples.select([3, 0, 4])
  assert _tree(part) == [tree[3], tree[0], tree[4]]
  assert part.first_response.tolist() == [0, 2, 4, 6]
  assert part.worse.tolist() == [1, 3, 5]
  assert _tree(part.select([1])) == [tree[0]]
  assert _tree(examples.select([])) == []
  prints = {
    examples.fingerprint,
    part.fingerprint,
    part.select([1]).fingerprint,
  }
  assert len(prints) == 3


def test_travels_as_a_name_and_a_choice(source):
  examples = prepare(config.Data(max_length=50), *source).select([2, 1])
  tree = _tree(examples)  # opens the arrays
  sent = examples.__getstate__()  # what goes to another process
  # Its choices, and none of its arrays.
  assert set(sent) == {
    "folder", "examples", "mismatch", "pairing", "apart", "prefix",
  }  # fmt: skip
  assert _tree(Prepared(**sent)) == tree


def test_single_answers_have_no_comparisons(source):
  path, *rest = source
  _write(pathlib.Path(path), [{"text": "One."}, {"text": "Two."}])
  examples = prepare(config.Data(max_length=50), path, *rest)
  assert len(examples.better) == 0
  assert examples.first_comparison.tolist() == [0, 0, 0]
  assert examples.first_response.tolist() == [0, 1, 2]
  assert examples.prompt(1).tolist() == [0]
  assert len(examples.select([1]).response(0)) == 5


def _repeated(source, sizes):
  """Examples of which sizes[k] have the prompt k."""
  path, *rest = source
  rows = [
    {"prompt": f"P{k}", "chosen": f" {i}", "rejected": "-"}
    for k, size in enumerate(sizes)
    for i in range(size)
  ]
  return prepare(
    config.Data(max_length=50), _write(pathlib.Path(path), rows), *rest
  )


@pytest.mark.parametrize(
  ("sizes", "count", "apart"),
  [
    ([1] * 9, 4, True),
    ([3, 3, 3, 1], 4, True),
    ([2, 2, 2, 3], 6, True),  # whichever comes first, three go together
    ([2, 2, 2, 3], 7, True),
    ([4, 6, 9], 10, True),
    ([3, 3, 3], 4, False),
    ([5, 5], 9, False),
  ],
)
@pytest.mark.parametrize("seed", range(4))
def test_holds_out_exactly_as_many(source, sizes, count, apart, seed):
  examples = _repeated(source, sizes)
  train, test = split_holdout(examples, count, seed)
  assert (len(train), len(test)) == (sum(sizes) - count, count)
  assert sorted(train.ids + test.ids) == sorted(examples.ids)
  prompts = [{each.prompt(i).tobytes() for i in range(len(each))}
             for each in (train, test)]  # fmt: skip
  assert prompts[0].isdisjoint(prompts[1]) == apart
  again = split_holdout(examples, count, seed)
  assert [each.ids for each in again] == [train.ids, test.ids]


def test_the_seed_decides_who_is_held_out(source):
  examples = _repeated(source, [1] * 12)
  held = {tuple(split_holdout(examples, 4, seed)[1].ids) for seed in range(6)}
  assert len(held) > 3
  assert len(split_holdout(examples, 0, 0)[1]) == 0


@pytest.mark.parametrize("count", [5, 6, -1])
def test_some_must_be_left_to_train_on(source, count):
  examples = prepare(config.Data(max_length=50), *source)
  with pytest.raises(UserError, match=r"eval_holdout is .*at most 4"):
    split_holdout(examples, count, 0)
