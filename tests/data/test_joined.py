"""Joined sources are what one preparation of all their rows would be."""

import dataclasses
import json

import numpy as np
import pytest

from jaxpref import config, pair
from jaxpref.data.joined import join
from jaxpref.data.prepared import prepare, split_holdout

RATED = [
  {
    "prompt": f"R{i}:",
    "responses": [
      {"content": f" {'x' * (i + k + 1)}", "scores": {"help": k, "wit": -k}}
      for k in range(3)
    ],
  }
  for i in range(4)
]
PAIRS = [
  {"prompt": f"Q{i}:", "chosen": " yes" + "!" * i, "rejected": " no"}
  for i in range(5)
]
BAD = {"prompt": "x", "chosen": "", "rejected": "y"}


@pytest.fixture
def parts(tmp_path, make_tokenizer):
  """Two sources, and the same rows as two files of one."""
  (folder := tmp_path / "both").mkdir()
  for name, rows in (("a", RATED), ("b", [*PAIRS, BAD])):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text)
  tokenizer = make_tokenizer()
  settings = config.Data(max_length=50, max_rejected=0.5)

  def read(path):
    found = prepare(settings, str(path), tokenizer, tmp_path / "cache")
    return pair.with_pairs(found, config.Pair())[0]

  one, two = read(folder / "a.jsonl"), read(folder / "b.jsonl")
  return join({"one": one, "two": two}), read(folder)


ARRAYS = (
  "prompt_lengths", "response_lengths", "label", "scores", "score",
  "first_response", "first_comparison", "better", "worse", "preference",
  "weight", "compared", "imitated", "mismatched",
)  # fmt: skip


def _assert_same(a, b):
  for name in ARRAYS:
    left, right = getattr(a, name), getattr(b, name)
    np.testing.assert_array_equal(left, right, err_msg=name)
    assert left.dtype == right.dtype, name
  for i in range(len(a)):
    assert a.prompt(i).tolist() == b.prompt(i).tolist()
  for j in range(len(a.label)):
    assert a.response(j).tolist() == b.response(j).tolist()
  assert a.max_token == b.max_token


def test_the_same_as_one_preparation(parts):
  joined, whole = parts
  _assert_same(joined, whole)
  assert joined.ids[0] == "one/a.jsonl:1"
  assert joined.ids[-1] == "two/b.jsonl:5"
  assert joined.source.tolist() == [0] * 4 + [1] * 5
  assert joined.axes == whole.axes == ["help", "wit"]
  assert joined.stats["rows"] == whole.stats["rows"] == 10
  assert joined.stats["sources"]["two"]["refused"] == {"empty response": 1}
  assert json.loads(joined.rejected)["file"] == "two/b.jsonl"


def test_what_is_done_to_it_afterwards(parts):
  joined, whole = parts
  chosen = [7, 0, 3]
  _assert_same(joined.select(chosen), whole.select(chosen))
  assert joined.select(chosen).source.tolist() == [1, 0, 0]
  _assert_same(joined.with_mismatched(3, 50), whole.with_mismatched(3, 50))
  for a, b in zip(*(split_holdout(x, 3, 0) for x in parts), strict=True):
    _assert_same(a, b)


def test_parts_that_were_chosen_from(parts):
  joined, whole = parts
  one, two = joined.parts.values()
  some = join({"one": one.select([2]), "two": two.select([4, 1])})
  _assert_same(some, whole.select([2, 8, 5]))


def test_fingerprints(parts):
  joined, _ = parts
  one, two = joined.parts.values()
  prints = {
    each.fingerprint
    for each in (
      joined,
      join({"one": one, "other": two}),
      join({"two": two, "one": one}),
      join({"one": one, "two": two.select([0])}),
      joined.select([0]),
    )
  }
  assert len(prints) == 5
  again = dataclasses.replace(joined)
  assert again.fingerprint == joined.fingerprint
