"""The tokens of an example, each as the text it stands for."""

from typing import Any, NamedTuple

from jaxpref.data.text import Tokens


class Span(NamedTuple):
  text: str
  role: str  # prompt | response
  special: bool
  id: int


def spans(
  tokenizer: Any, tokens: Tokens, response: int, most: int = 400
) -> list[Span]:
  """Prompt and one response; "…" where the prompt's start or the response's
  end is left out.

  Args:
    tokenizer: of transformers.
    tokens: of a record.
    response: its number.
    most: tokens of either part that are shown.
  """
  prompt = tokens.prompt[-most:]
  answer = tokens.responses[response][:most]
  roles = ["prompt"] * len(prompt) + ["response"] * len(answer)
  ids = [*prompt, *answer]
  special = set(tokenizer.all_special_ids)
  pieces = _pieces(tokenizer, ids)
  if len(tokens.prompt) > most:
    pieces[0] = f"… {pieces[0]}"
  if len(tokens.responses[response]) > most:
    pieces[-1] += " …"
  return [
    Span(piece, role, id in special, id)
    for piece, role, id in zip(pieces, roles, ids, strict=True)
  ]


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
  """What each token adds to the text; '' until a character is whole.

  A token alone does not say whether a space comes before it.
  """
  pieces, start, read = [], 0, 0
  for end in range(1, len(ids) + 1):
    # A window, from the last whole character on: the text before it may
    # decide about a space, and no more.
    before = tokenizer.decode(
      ids[start:read], clean_up_tokenization_spaces=False
    )
    after = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
    if after.endswith("\ufffd") and end < len(ids):
      pieces.append("")
      continue
    pieces.append(after[len(before) :])
    start, read = read, end
  return pieces
