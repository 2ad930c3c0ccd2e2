"""A scripted judge: does a regular expression occur in the response?"""

from collections.abc import Callable, Sequence
import re

from jaxpref.errors import UserError


def pattern_score(pattern: str) -> Callable[[Sequence[str]], list[float]]:
  """A scorer of responses: 1.0 where `pattern` is found, else 0.0.

  The mean of its scores is the share of responses that match.

  Raises UserError for a pattern that is no regular expression.
  """
  try:
    expression = re.compile(pattern)
  except re.error as error:
    where = "" if error.pos is None else f" at character {error.pos}"
    raise UserError(
      f"config.score.pattern is {pattern!r}, which is no regular expression: "
      f"{error.msg}{where}. It is read by Python's re.search; write a "
      "backslash before a character that should stand for itself, or '' to "
      "score nothing."
    ) from None

  def score(responses: Sequence[str]) -> list[float]:
    return [float(bool(expression.search(text))) for text in responses]

  return score
