"""The judge that looks for a regular expression."""

import pytest

from jaxpref.errors import UserError
from jaxpref.score.pattern import pattern_score


@pytest.mark.parametrize(
  ("pattern", "expected"),
  [
    (r"\bhappy\b", [1.0, 0.0, 0.0, 0.0]),
    (r"(?i)\bhappy\b", [1.0, 1.0, 0.0, 0.0]),
    (r"happy", [1.0, 0.0, 1.0, 0.0]),
    (r"\A\Z", [0.0, 0.0, 0.0, 1.0]),
  ],
)
def test_share_that_matches(pattern, expected):
  responses = [" She was happy.", "HAPPY!", "unhappy\n", ""]
  assert pattern_score(pattern)(responses) == expected


def test_no_responses():
  assert pattern_score("x")([]) == []


@pytest.mark.parametrize("pattern", ["(", "[a", "*", r"(?P<x>a)(?P<x>b)"])
def test_bad_expression_names_the_key(pattern):
  with pytest.raises(UserError, match=r"config\.score\.pattern") as error:
    pattern_score(pattern)
  assert repr(pattern) in str(error.value)
