"""Simulated stories with two kinds of ending, for the quickstart and tests.

Nobody wrote these stories and nobody compared them: a small grammar makes
them. A story is a beginning of three sentences (a hero, a thing it loves, a
mishap) and an ending that is either happy or sad. Both kinds are drawn from
lists of equal size, so that a model trained on as many of each finds either
one the likelier in about half of the comparisons, until it is taught.
"""

from collections.abc import Iterator, Sequence
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

import numpy as np

from jaxpref.errors import UserError

_SHE = (
  "Lily", "Mia", "Anna", "Ella", "Rosa", "Zoe", "Nina", "Emma", "Ruby", "Lucy",
  "Clara", "Hazel",
)  # fmt: skip
_HE = (
  "Tom", "Max", "Ben", "Milo", "Oscar", "Sam", "Finn", "Leo", "Jack", "Hugo",
  "Felix", "Noah",
)  # fmt: skip

_WORDS: dict[str, tuple[str, ...]] = {
  "kind": (
    "fox", "bear", "rabbit", "mouse", "cat", "duck", "frog", "hedgehog", "pig",
    "pony", "deer", "goat", "beaver", "squirrel",
  ),
  "size": (
    "little", "big", "small", "young", "brave", "shy", "clever", "quiet",
    "hungry", "funny",
  ),
  "thing": (
    "ball", "kite", "boat", "drum", "hat", "scarf", "bell", "doll", "lamp",
    "book", "wagon", "whistle", "basket", "blanket",
  ),
  "color": (
    "red", "blue", "green", "yellow", "golden", "silver", "white", "brown",
  ),
  "place": (
    "river", "lake", "hill", "forest", "garden", "barn", "meadow", "bridge",
    "mill", "village",
  ),
  "when": (
    "rainy morning", "sunny morning", "cold night", "windy day", "snowy day",
    "warm evening", "dark night", "foggy evening",
  ),
  "helper": (
    "farmer", "baker", "teacher", "sailor", "neighbor", "shepherd", "doctor",
    "painter",
  ),
  "family": ("mother", "father", "brother", "sister", "grandma", "uncle"),
  "opening": (
    "Once upon a time there was a {size} {kind} named {name}.",
    "Once there was a {size} {kind} called {name}.",
    "A {size} {kind} named {name} lived near the {place}.",
    "Long ago, a {size} {kind} called {name} lived by the {place}.",
  ),
  "love": (
    "{He} had a {color} {thing} and played with it every day.",
    "{name} loved {his} {color} {thing} more than anything.",
    "{He} took {his} {color} {thing} everywhere {he} went.",
    "For {his} birthday {name} got a {color} {thing}.",
  ),
  # Happy and sad words and templates stand pairwise: equal counts, like
  # lengths. Whatever one kind gains in likelihood, the other gains too.
  "glad": (
    "happy", "glad", "proud", "cheerful", "delighted", "thankful",
  ),
  "sorry": (
    "sad", "upset", "lonely", "gloomy", "miserable", "hopeless",
  ),
  "cheered": ("laughed", "smiled", "danced", "cheered", "sang", "giggled"),
  "cried": ("cried", "wept", "sobbed", "frowned", "sighed", "moaned"),
  "kindly": ("kind", "gentle", "friendly", "helpful"),
  "meanly": ("mean", "rude", "grumpy", "selfish"),
  "happy": (
    "A {kindly} {helper} came and {mended}. {name} was {glad}.",
    "The {kindly} {helper} {mended}, and they {cheered} together.",
    "{name} kept trying and {mended}. {He} {cheered} all the way home.",
    "In the end {name} {mended} and felt so {glad}.",
    "Then {his} {family} {mended}. Everyone {cheered}.",
    "{His} {family} {cheered}, because the {helper} {mended} before dinner.",
    "{name} {mended} at last. {He} was {glad}, and {his} {family} was "
    "{glad} too.",
    "The {helper} was {kindly} and gave {him} a new {thing}. "
    "{name} {cheered}.",
    "{He} asked for help, and soon the {helper} {mended}. They were {glad}.",
    "{name} went home {glad}.",
    "After that {he} {cheered} and {cheered}, for {his} {family} {mended}.",
    "So {name} and the {helper} became {glad} friends and {cheered} every "
    "day.",
  ),
  "sad": (
    "A {meanly} {helper} came and {failed}. {name} was {sorry}.",
    "The {meanly} {helper} {failed}, and they {cried} together.",
    "{name} stopped trying and {failed}. {He} {cried} all the way home.",
    "In the end {name} {failed} and felt so {sorry}.",
    "Then {his} {family} {failed}. Everyone {cried}.",
    "{His} {family} {cried}, because the {helper} {failed} before dinner.",
    "{name} {failed} at last. {He} was {sorry}, and {his} {family} was "
    "{sorry} too.",
    "The {helper} was {meanly} and took away {his} other {thing}. "
    "{name} {cried}.",
    "{He} asked for help, but even the {helper} {failed}. They were {sorry}.",
    "{name} went home {sorry}.",
    "After that {he} {cried} and {cried}, for {his} {family} {failed}.",
    "So {name} and the {helper} became {sorry} enemies and {cried} every "
    "day.",
  ),
}  # fmt: skip

# What happens to the thing, how it is put right, and how it is not.
_MISHAPS = (
  ("lost the {thing} near the {place}",
   "found the {thing}", "never found the {thing}"),
  ("dropped the {thing} into the deep water",
   "pulled the {thing} out", "let the {thing} sink"),
  ("broke the {thing} on a sharp stone",
   "fixed the {thing}", "could not fix the {thing}"),
  ("left the {thing} high up in a tall tree",
   "got the {thing} down", "could not reach the {thing}"),
  ("saw a crow fly away with the {thing}",
   "brought the {thing} back", "let the crow keep the {thing}"),
  ("forgot the {thing} under the old bench",
   "saved the {thing}", "threw the {thing} away"),
)  # fmt: skip


def _any_word(*slots: str) -> str:
  words = [word for slot in slots for word in _WORDS[slot]]
  return rf"\b(?:{'|'.join(words)})\b"


PREFERRED_ENDING = (
  rf"(?s)\A(?!.*{_any_word('sorry', 'cried', 'meanly')})"
  rf".*{_any_word('glad', 'cheered', 'kindly')}"
)
"""Matches an ending that has a happy word and no sad one."""

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
VOCABULARY_SIZE = 872  # all merges there are: every word is one token

_SLOT = re.compile(r"\{(\w+)\}")
_Draws = Iterator[float]  # in [0, 1)


def story(key: int | np.random.Generator) -> tuple[str, str, str]:
  """A beginning, a happy ending and a sad one, of the same hero and thing.

  Args:
    key: an integer always gives the same story; a generator, its next one.

  Returns: three texts without space at either end.
  """
  rng = np.random.default_rng(key)
  draws = iter(rng.random(96).tolist())  # one call: a story uses about 20
  she = next(draws) < 0.5
  event, mended, failed = _pick(_MISHAPS, draws)
  slots = {"name": _pick(_SHE if she else _HE, draws)}
  slots |= dict(zip(("he", "his", "him"), _pronouns(she), strict=True))
  slots |= {"He": slots["he"].title(), "His": slots["his"].title()}
  for slot in ("thing", "color", "helper", "family"):
    slots[slot] = _pick(_WORDS[slot], draws)
  slots |= {"event": event, "mended": mended, "failed": failed}
  beginning = "{opening} {love} One {when}, {name} {event}."
  return (
    _fill(beginning, slots, draws),
    _fill("{happy}", slots, draws),
    _fill("{sad}", slots, draws),
  )


def write_corpus(
  folder: str | pathlib.Path,
  *,
  num_stories: int,
  num_comparisons: int,
  seed: int,
) -> pathlib.Path:
  """Writes stories, comparisons and a tokenizer; once.

      stories.jsonl      {"prompt": "", "completion": story}: to pretrain on;
                         half of the endings are happy
      comparisons.jsonl  {"prompt": beginning, "chosen": " " + happy ending,
                         "rejected": " " + sad ending}
      tokenizer/         a folder for transformers' AutoTokenizer
      corpus.json        the arguments

  No beginning stands twice, in one file or in both. The files depend on the
  arguments alone. They appear all at once, and a second call with the same
  arguments leaves them as they are.

  Returns: the folder.

  Raises UserError for a folder that holds something else.
  """
  folder = pathlib.Path(folder)
  arguments = {
    "num_stories": num_stories,
    "num_comparisons": num_comparisons,
    "seed": seed,
    "grammar": _fingerprint(),
  }
  if _is_written(folder, arguments):
    return folder
  stories = _distinct_stories(seed)
  texts = []
  for number in range(num_stories):
    beginning, *endings = next(stories)
    texts.append(f"{beginning} {endings[number % 2]}")
  pairs = [next(stories) for _ in range(num_comparisons)]

  folder.parent.mkdir(parents=True, exist_ok=True)
  temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  rows = [{"prompt": "", "completion": text} for text in texts]
  _write_lines(temporary / "stories.jsonl", rows)
  rows = [
    {"prompt": beginning, "chosen": f" {happy}", "rejected": f" {sad}"}
    for beginning, happy, sad in pairs
  ]
  _write_lines(temporary / "comparisons.jsonl", rows)
  _write_tokenizer(temporary / "tokenizer")
  (temporary / "corpus.json").write_text(json.dumps(arguments, indent=2) + "\n")
  _move_into_place(temporary, folder)
  return folder


def _pronouns(she: bool) -> tuple[str, str, str]:
  return ("she", "her", "her") if she else ("he", "his", "him")


def _pick(options: Sequence[Any], draws: _Draws) -> Any:
  return options[int(next(draws) * len(options))]


def _fill(template: str, slots: dict[str, str], draws: _Draws) -> str:
  """Replaces slots from the left, those inside replacements too."""
  while match := _SLOT.search(template):
    slot = match[1]
    word = slots[slot] if slot in slots else _pick(_WORDS[slot], draws)
    template = template[: match.start()] + word + template[match.end() :]
  return template


def _distinct_stories(seed: int) -> Iterator[tuple[str, str, str]]:
  rng = np.random.default_rng(seed)
  seen = set()  # of some hundred million beginnings
  while True:
    beginning, happy, sad = story(rng)
    if beginning not in seen:
      seen.add(beginning)
      yield beginning, happy, sad


def _fingerprint() -> str:
  """Changes with the grammar, so that a folder of an older one is renewed."""
  grammar = json.dumps([_SHE, _HE, _WORDS, _MISHAPS, VOCABULARY_SIZE])
  return hashlib.sha256(grammar.encode()).hexdigest()[:16]


def _is_written(folder: pathlib.Path, arguments: dict[str, Any]) -> bool:
  marker = folder / "corpus.json"
  if marker.is_file():
    return json.loads(marker.read_text()) == arguments
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(
      f"{folder}: cannot write the simulated stories here, because it holds "
      "something else. Give a new or an empty folder."
    )
  return False


def _move_into_place(temporary: pathlib.Path, folder: pathlib.Path) -> None:
  old = temporary.with_name(temporary.name + ".old")
  if folder.exists():  # empty, or a corpus of other arguments
    os.rename(folder, old)
  try:
    os.rename(temporary, folder)
  except OSError:  # another process was faster
    shutil.rmtree(temporary)
    if not (folder / "corpus.json").is_file():
      raise
  shutil.rmtree(old, ignore_errors=True)


def _write_lines(path: pathlib.Path, rows: Sequence[dict[str, str]]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_tokenizer(folder: pathlib.Path) -> None:
  """Byte-level BPE: no text is unknown, and no token spans two words.

  The stories it learns from are always the same, so that a corpus of any
  size and seed has the same token ids.
  """
  import tokenizers  # here: the grammar alone should import fast
  from tokenizers import decoders, models, pre_tokenizers, processors, trainers
  import transformers

  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY_SIZE,
    special_tokens=list(SPECIAL_TOKENS.values()),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  rng = np.random.default_rng(0)
  texts = (" ".join(story(rng)) for _ in range(2000))
  tokenizer.train_from_iterator(texts, trainer)
  bos = SPECIAL_TOKENS["bos_token"]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
  )
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, **SPECIAL_TOKENS
  )
  fast.save_pretrained(folder)
