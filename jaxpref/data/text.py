"""Records to tokens, by character offsets in the text as the model sees it.

The rules, which the summary of a preparation counts:
- Text rows: prompt and response are one text; what the tokenizer puts before
  a text by its own rule (BOS) stands once, at the start of the prompt; EOS
  ends every response that was not cut. Chat rows: all comes from the template.
- A response's tokens are those whose characters belong to it. Where a token
  spans the boundary, prompt and responses of the record are tokenised apart
  (`boundary_split`), so that all its responses share the prompt's tokens.
- Texts of more than 1,000 characters for each token of `max_length` are dropped
  unread: no vocabulary has such tokens, and megabytes take minutes to encode.
- `max_length` holds a prompt and one response with BOS and EOS. Longer ones:
  truncate = 'drop' drops the example; 'keep_start' cuts the response at its
  end; 'keep_end' cuts the prompt at its start, BOS kept, and only a response
  that is too long by itself at its end.
"""

import array
from collections import Counter
from collections.abc import Iterator, MutableSequence, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
from typing import Any, NamedTuple

from jaxpref import config
from jaxpref.data.tokenizer import Rules, boundary
from jaxpref.errors import UserError
from jaxpref.types import PICTURES, Record


class Tokens(NamedTuple):
  """The tokens of a record: its prompt once, and each of its responses."""

  prompt: list[int]
  responses: list[list[int]]


class Unused(NamedTuple):
  """Why a record yields no tokens: refused for its content, or dropped."""

  refused: bool
  kind: str
  detail: str = ""


_CHARACTERS = 1000  # of a token; the longest known have some hundred blanks

EVENTS = {
  "boundary_split": "examples have a token across the end of the prompt: "
  "prompt and responses were tokenised apart",
  "prompts_cut": "prompts were cut at their start",
  "responses_cut": "responses were cut at their end, and have no EOS",
  "responses_without_end": "responses have no EOS or end-of-turn token: the "
  "model will not learn to stop",
  "eos_inside": "responses hold the EOS token before their end, written in "
  "the data",
}
"""What is counted beside refusals and drops, and what it means."""


@dataclasses.dataclass
class Counts:
  """What happened to the records, and how long they were before any cut."""

  events: Counter[str] = dataclasses.field(default_factory=Counter)
  lengths: MutableSequence[int] = dataclasses.field(
    default_factory=lambda: array.array("i")
  )


def tokenize(
  records: Sequence[Record], rules: Rules, limits: config.Data, counts: Counts
) -> Iterator[Tokens | Unused]:
  """The tokens of each record in order, or why it has none.

  Encodes all records in one batch: pass some hundreds at a time.

  Args:
    records: prompts with their responses, texts or chat messages.
    rules: of the tokenizer.
    limits: `max_length`, `max_prompt_length` and `truncate` are read.
    counts: what happens is added to it.

  Raises UserError for chat messages and a tokenizer without chat template.
  """
  for _, tokens in tokenize_ahead(iter([records]), rules, limits, counts):
    yield tokens


def tokenize_ahead(
  batches: Iterator[Sequence[Record]],
  rules: Rules,
  limits: config.Data,
  counts: Counts,
) -> Iterator[tuple[Record, Tokens | Unused]]:
  """The same of many batches, each record with what became of it.

  A thread encodes a batch while the one before is finished, and what the
  caller does with that: the tokenizer is Rust's, and needs no interpreter.
  """
  _ = rules.encoder  # made before two threads ask for it
  with ThreadPoolExecutor(1) as thread:

    def begin(records: Sequence[Record]) -> _Begun:
      rendered = [
        _unless_endless(_render(record, rules), limits.max_length)
        for record in records
      ]
      texts = [each for each in rendered if isinstance(each, _Text)]
      cuts = [rules.cut(text.prompt) for text in texts]
      parts = [
        part
        for text, (head, rest) in zip(texts, cuts, strict=True)
        for part in (head, *(rest + each for each in text.responses))
      ]
      kept = [len(rest) for _, rest in cuts]
      return records, rendered, texts, kept, thread.submit(rules.encode, parts)

    def finish(begun: _Begun) -> Iterator[tuple[Record, Tokens | Unused]]:
      records, rendered, texts, kept, encodings = begun
      tokens = iter(_encode(texts, kept, encodings.result(), rules))
      for record, text in zip(records, rendered, strict=True):
        if isinstance(text, Unused):
          yield record, text
          continue
        prompt, responses, split = next(tokens)
        counts.events["boundary_split"] += split
        told = _finish(record, text, prompt, responses, rules, limits, counts)
        yield record, told

    before: _Begun | None = None
    for records in batches:
      begun = begin(records)
      if before:
        yield from finish(before)
      before = begun
    if before:
      yield from finish(before)


class _Text(NamedTuple):
  prompt: str
  responses: list[str]
  chat: bool


def _render(record: Record, rules: Rules) -> _Text | Unused:
  contents: list[Any] = [response.content for response in record.responses]
  if all(isinstance(each, str) for each in (record.prompt, *contents)):
    return _Text(str(record.prompt), contents, chat=False)
  if any(isinstance(each, PICTURES) for each in contents):
    return Unused(
      True,
      "images where texts are needed",
      "a language model is trained on texts, and the row's answers are images",
    )
  try:
    return _render_chat(record, contents, rules)
  except UserError:
    raise
  except Exception as error:  # whatever a template raises: jinja2's and others
    detail = f"{type(error).__name__}: {error}"
    return Unused(True, "the chat template refuses the messages", detail)


def _render_chat(
  record: Record, contents: list[Any], rules: Rules
) -> _Text | Unused:
  prompt: Any = record.prompt
  template = rules.tokenizer.apply_chat_template
  if not rules.tokenizer.chat_template:
    raise UserError(
      f"{record.id} holds chat messages, and the tokenizer of "
      f"{rules.tokenizer.name_or_path} has no chat template to write them as "
      "text. Set model.tokenizer to a folder whose tokenizer has one "
      "(chat_template.jinja), or give prompt, chosen and rejected as texts."
    )
  start = ""
  if prompt:
    start = template(prompt, tokenize=False, add_generation_prompt=True)
  responses = []
  for content in contents:
    whole = template([*prompt, *content], tokenize=False)
    if not whole.startswith(start):
      return Unused(
        True,
        "the chat template rewrites the prompt",
        "the conversation does not begin with the prompt as it is given to "
        "the model for generation, so its response cannot be told apart",
      )
    whole.encode()  # fails for half a surrogate pair
    responses.append(whole[len(start) :])
  return _Text(start, responses, chat=True)


def _unless_endless(text: _Text | Unused, max_length: int) -> _Text | Unused:
  if isinstance(text, Unused):
    return text
  longest = max(len(text.prompt), *map(len, text.responses))
  endless = longest > _CHARACTERS * max_length
  return Unused(False, "longer than max_length") if endless else text


# Records, their texts, those that are used, how many characters of their
# prompts are encoded with each response, and what head and these encode to.
_Begun = tuple[
  Sequence[Record],
  list[_Text | Unused],
  list[_Text],
  list[int],
  Future[list[Any]],
]


def _encode(
  texts: list[_Text], kept: list[int], parts: list[Any], rules: Rules
) -> list[tuple[list[int], list[list[int]], bool]]:
  """For each text: prompt tokens, response tokens, whether split apart.

  Args:
    texts: prompts with their responses.
    kept: the characters of each prompt that are encoded with the responses.
    parts: the encodings of each prompt's head, and of its rest with each
      response.
    rules: of the tokenizer.
  """
  encodings = iter(parts)
  found: list[Any] = []
  for text, characters in zip(texts, kept, strict=True):
    head = next(encodings).ids
    mine = [next(encodings) for _ in text.responses]
    ends = [boundary(encoding, characters) for encoding in mine]
    ids = [encoding.ids for encoding in mine]
    rests = [each[:end] for each, end in zip(ids, ends, strict=True)]
    if None in ends or any(rest != rests[0] for rest in rests):
      found.append(None)
    else:
      answers = [each[end:] for each, end in zip(ids, ends, strict=True)]
      found.append((head + rests[0], answers, False))
  split = iter(_encode_apart([t for t, f in zip(texts, found) if not f], rules))
  return [each or next(split) for each in found]


def _encode_apart(
  texts: list[_Text], rules: Rules
) -> list[tuple[list[int], list[list[int]], bool]]:
  prompts = rules.encode([text.prompt for text in texts])
  parts = iter(rules.encode_apart([r for t in texts for r in t.responses]))
  return [
    (prompt.ids, [next(parts) for _ in text.responses], True)
    for text, prompt in zip(texts, prompts, strict=True)
  ]


def _finish(
  record: Record,
  text: _Text,
  prompt: list[int],
  responses: list[list[int]],
  rules: Rules,
  limits: config.Data,
  counts: Counts,
) -> Tokens | Unused:
  """Adds BOS and EOS, applies the limits."""
  prompt, responses, kept = _start(text, prompt, responses, rules)
  if not prompt:
    return Unused(
      True,
      "empty prompt without BOS",
      "the first token of a response needs a token before it, and the "
      "tokenizer has no BOS token",
    )
  if not all(responses):
    return Unused(True, "empty response", "a response has no token")
  responses = _end(text, responses, rules, counts)
  counts.lengths.append(len(prompt) + max(map(len, responses)))
  tokens = _limit(Tokens(prompt, responses), kept, limits, counts)
  if isinstance(tokens, Unused):
    return tokens
  for better, worse, *_ in record.comparisons:
    if tokens.responses[better] == tokens.responses[worse]:
      return Unused(False, "responses of the same tokens")
  return tokens


def _start(
  text: _Text, prompt: list[int], responses: list[list[int]], rules: Rules
) -> tuple[list[int], list[list[int]], int]:
  """Puts BOS once; also returns how many first tokens no cut removes."""
  bos = rules.tokenizer.bos_token_id
  prefix = rules.prefix
  if not prompt:
    # A response's first token needs one before it. A text or a template may
    # have written it, where it counts as the response's.
    prompt = prefix or ([] if bos is None else [bos])
    count = len(prompt)
    if all(each[:count] == prompt for each in responses):
      responses = [each[count:] for each in responses]
    return prompt, responses, count
  if not text.chat:
    if prompt[: len(prefix)] != prefix:  # else the text brings its own
      prompt = prefix + prompt
    return prompt, responses, len(prefix)
  if prompt[:2] == [bos, bos]:
    prompt = prompt[1:]  # the template and a message both wrote one
  return prompt, responses, int(prompt[:1] == [bos])


def _end(
  text: _Text, responses: list[list[int]], rules: Rules, counts: Counts
) -> list[list[int]]:
  eos = rules.tokenizer.eos_token_id
  if text.chat:
    ends = [not rules.ending.isdisjoint(each) for each in responses]
    counts.events["responses_without_end"] += ends.count(False)
    return responses
  if eos is None:
    counts.events["responses_without_end"] += len(responses)
    return responses
  counts.events["eos_inside"] += sum(eos in each[:-1] for each in responses)
  return [each if each[-1] == eos else [*each, eos] for each in responses]


def _limit(
  tokens: Tokens, kept: int, limits: config.Data, counts: Counts
) -> Tokens | Unused:
  prompt, responses = tokens
  longest = max(map(len, responses))
  long_prompt = 0 < limits.max_prompt_length < len(prompt)
  if not long_prompt and len(prompt) + longest <= limits.max_length:
    return tokens
  if limits.truncate == "keep_end":
    room = max(limits.max_length - longest, kept, 1)
    if limits.max_prompt_length:
      room = min(room, limits.max_prompt_length)
    if room < len(prompt):
      counts.events["prompts_cut"] += 1
      prompt = _cut_start(prompt, kept, room)
  elif long_prompt:
    return Unused(False, "prompt longer than max_prompt_length")
  elif limits.truncate == "drop":
    return Unused(False, "longer than max_length")
  room = limits.max_length - len(prompt)
  if room <= 0:
    return Unused(False, "no room for a response")
  counts.events["responses_cut"] += sum(len(r) > room for r in responses)
  return Tokens(prompt, [each[:room] for each in responses])


def _cut_start(prompt: list[int], kept: int, room: int) -> list[int]:
  rest = room - kept
  return prompt[:room] if rest <= 0 else prompt[:kept] + prompt[-rest:]
