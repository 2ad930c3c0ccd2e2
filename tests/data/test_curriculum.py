"""Difficulties, stages, and comparisons as examples of their own."""

import re

import numpy as np
import pytest

from jaxpref import config, pair
from jaxpref.data.curriculum import (
  difficulty,
  go_on_from,
  split,
  stage_settings,
  take_stage,
)
from jaxpref.data.mixture import make_order
from jaxpref.errors import UserError

RATINGS = [[2, 5, 4, 3], [1, 4, 2, 9]]
CURRY = {"criterion": "score_gap", "stages": 3, "per_prompt": True}


@pytest.fixture(scope="module")
def rated(make_prepared):
  """Two prompts with four rated answers each, the best against the rest."""
  made = make_prepared(
    [
      ([9, i], [[i, k] * (k + 1) for k in range(4)], [], None,
       [{"overall": float(x)} for x in ratings])
      for i, ratings in enumerate(RATINGS)
    ]
  )  # fmt: skip
  rules = config.Pair(rule="best_rest", axis="overall")
  return pair.with_pairs(made, rules)[0].by_comparison()


def _settings(**given):
  return config.build({"data": {"curriculum": {**CURRY, **given}}})


def _compared(data):
  """(prompt, better, worse) of each example, as the responses' numbers."""
  assert np.diff(data.first_response).tolist() == [2] * len(data)
  return [
    (int(data.prompt(i)[1]), *(int(data.response(j[i])[1]) for j in sides))
    for i in range(len(data))
    for sides in [(data.better, data.worse)]
  ]


def test_each_comparison_is_an_example(rated):
  assert _compared(rated) == [
    (0, 1, 2), (0, 1, 3), (0, 1, 0), (1, 3, 1), (1, 3, 2), (1, 3, 0),
  ]  # fmt: skip
  assert rated.ids == ["made:0"] * 3 + ["made:1"] * 3
  lengths = [len(rated.response(j)) for j in range(12)]
  assert lengths == rated.response_lengths.tolist()
  gaps = (rated.score[rated.better] - rated.score[rated.worse]).tolist()
  assert gaps == [1.0, 2.0, 3.0, 5.0, 7.0, 8.0]
  assert _compared(rated.select([5, 0])) == [(1, 3, 0), (0, 1, 2)]
  assert rated.fingerprint.endswith("-apart")


def test_curry_dpo(rated):
  """Ratings 2, 5, 4, 3: stages (1, 0), (1, 3), (1, 2), gaps 3, 2, 1."""
  stages = [
    take_stage(rated, _settings(stage=stage).data.curriculum)
    for stage in range(3)
  ]
  found = [_compared(data) for data, _ in stages]
  assert [each[0] for each in found] == [(0, 1, 0), (0, 1, 3), (0, 1, 2)]
  assert [each[1] for each in found] == [(1, 3, 0), (1, 3, 2), (1, 3, 1)]
  assert stages[2][1] == (
    "Stage 2 of 3: 2 of 6 comparisons, score_gap from -5 to -1 (larger is "
    "harder)."
  )


def test_all_comparisons_cut_into_parts(rated):
  settings = _settings(stages=2, per_prompt=False, stage=0).data.curriculum
  data, _ = take_stage(rated, settings)
  gaps = data.score[data.better] - data.score[data.worse]
  assert sorted(gaps.tolist()) == [5.0, 7.0, 8.0]


@pytest.mark.parametrize("per_prompt", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_stages_hold_all_comparisons_and_get_harder(per_prompt, seed):
  rng = np.random.default_rng(seed)
  groups, hard = rng.integers(0, 9, 50), rng.normal(size=50).round(1)
  found = split(hard, groups, 4, per_prompt=per_prompt)
  assert found.min() == 0
  assert found.max() == 3
  for group in np.unique(groups) if per_prompt else [slice(None)]:
    here = groups == group if per_prompt else group
    order = np.argsort(hard[here], kind="stable")
    assert (np.diff(found[here][order]) >= 0).all()
    if not per_prompt:  # the last one takes the rest
      assert np.bincount(found).tolist() == [12, 12, 12, 14]
  # Fewer comparisons than stages: no two in one.
  alone = split(hard[:3], np.zeros(3), 4, per_prompt=True)
  assert len(set(alone)) == 3


def test_one_stage_is_an_order(rated):
  settings = _settings(stages=1, per_prompt=False).data
  order, _ = make_order(settings, rated)
  assert order(0).tolist() == order(1).tolist() == [5, 4, 3, 2, 1, 0]
  longest = _settings(criterion="length", stages=1, per_prompt=False).data
  found = make_order(longest, rated)[0](0)
  lengths = np.max(rated.response_lengths.reshape(-1, 2), axis=1)[found]
  assert (np.diff(lengths) >= 0).all()


@pytest.fixture
def own(tmp_path):
  """own("return ...") -> the name of a criterion that does so."""
  path = tmp_path / "own.py"

  def write(body):
    path.write_text(f"import numpy as np\ndef hard(data):\n  {body}\n")
    return f"{path}:hard"

  return write


def test_a_function_of_the_users(rated, own):
  values = difficulty(rated, own("return -data.prompt_lengths - data.worse"))
  np.testing.assert_array_equal(values, -2 - rated.worse)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("return data.score", "gave an array of shape (12,)"),
    ("return data.worse * np.inf", "6 of 6 comparisons no finite number"),
    ("return 0 * data.worse", "all comparisons the same difficulty, 0"),
    ("return data.nothing", "has no attribute 'nothing'"),
  ],
)
def test_functions_that_cannot_be_used(rated, own, body, message):
  with pytest.raises(UserError, match=re.escape(message)):
    difficulty(rated, own(body))


def test_names_that_are_not_known(rated, own):
  with pytest.raises(UserError, match="Did you mean 'score_gap'"):
    difficulty(rated, "scoregap")
  with pytest.raises(UserError, match="no such file"):
    difficulty(rated, "/nowhere.py:f")
  with pytest.raises(UserError, match=r"defines no other\(\)"):
    difficulty(rated, own("return 0").replace("hard", "other"))


def test_a_stage_without_comparisons(rated):
  settings = _settings(stages=7, stage=6).data.curriculum
  with pytest.raises(UserError, match="Stage 6 of the curriculum has no"):
    take_stage(rated, settings)


@pytest.mark.parametrize("refresh", [True, False])
def test_a_stage_goes_on_from_the_one_before(tmp_path, refresh):
  curriculum = {**CURRY, "refresh": refresh, "stage": 0}
  first = config.build(
    {"model": {"path": "sft"}, "data": {"curriculum": curriculum}}
  )
  second = go_on_from(stage_settings(first, 1), tmp_path)
  third = go_on_from(stage_settings(second, 2), tmp_path / "2")
  assert second.model.path == str(tmp_path)
  assert second.model.tokenizer == third.model.tokenizer == "sft"
  paths = [each.reference.path for each in (first, second, third)]
  assert paths == (["", "", ""] if refresh else ["", "sft", "sft"])
  assert third.data.curriculum.stage == 2
