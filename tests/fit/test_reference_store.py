"""The files of reference log-probs."""

import json

import numpy as np
import pytest

from jaxpref.fit.reference_store import ReferenceStore


@pytest.fixture
def data(make_prepared):
  """Responses 0 and 4 are alike, and so are 1 and 3 but for their prompts."""
  return make_prepared(
    [
      ([1, 2], [[3, 4], [5]], []),
      ([1], [[2, 3, 4], [5]], []),
      ([1, 2], [[3, 4]], []),
    ]
  )


def _store(folder, **depends):
  return ReferenceStore(folder, **({"weights": "a"} | depends))


def test_values_come_back_for_the_same_tokens(data, tmp_path):
  store = _store(tmp_path)
  values, known = store.find(data)
  assert not values.any()
  assert not known.any()
  given = np.arange(1, 10, dtype=np.float32)  # of 2 + 1 + 3 + 1 + 2 tokens
  store.add(data, np.array([0, 3]), given)
  values, known = _store(tmp_path).find(data)
  assert known.tolist() == [True, False, False, True, True]
  assert values.tolist() == [1, 2, 0, 0, 0, 0, 7, 1, 2]


def test_files_are_only_added(data, tmp_path):
  values = np.arange(9, dtype=np.float32)
  for responses in ([0], [1, 2], [1, 2]):
    _store(tmp_path).add(data, np.array(responses), values)
  assert len(list(tmp_path.rglob("*.safetensors"))) == 2
  assert _store(tmp_path).find(data)[1].tolist() == [
    True, True, True, False, True,
  ]  # fmt: skip


def test_another_reference_has_another_folder(data, tmp_path):
  store = _store(tmp_path)
  store.add(data, np.arange(5), np.ones(9, np.float32))
  assert not _store(tmp_path, weights="b").find(data)[1].any()
  told = json.loads((store.folder / "reference.json").read_text())
  assert told == {"weights": "a"}


def test_what_is_not_whole_is_passed_over(data, tmp_path):
  store = _store(tmp_path)
  store.add(data, np.array([0]), np.ones(9, np.float32))
  store.add(data, np.array([2]), np.ones(9, np.float32))
  torn = sorted(store.folder.glob("*.safetensors"))[0]
  torn.write_bytes(torn.read_bytes()[:-2])
  (store.folder / ".partial.safetensors.0").write_bytes(b"x")
  assert store.find(data)[1].sum() in (1, 2)  # responses 0 and 4 are alike


@pytest.mark.parametrize(
  "rows",
  [
    [([7, 1, 2], [[3, 4], [5]], [])],  # another template: a token in front
    [([1, 2, 3], [[4], [5, 5]], [])],  # cut in another place
    [([1, 2], [[3, 5], [4]], [])],  # other responses
  ],
)
def test_other_tokens_find_nothing(data, make_prepared, tmp_path, rows):
  store = _store(tmp_path)
  store.add(data, np.arange(5), np.ones(9, np.float32))
  assert not store.find(make_prepared(rows))[1].any()
  assert store.find(make_prepared([([1, 2], [[5]], [])]))[1].all()
