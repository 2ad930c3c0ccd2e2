"""Text samples before and after training, judged where a scorer is named."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import jax
import numpy as np

from jaxpref import config
from jaxpref.data.prepared import Prepared
from jaxpref.data.tokenizer import Rules
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.models.build import Definition
from jaxpref.sample.prompts import read_prompts
from jaxpref.sample.text import generate
from jaxpref.score.pattern import pattern_score
from jaxpref.types import Params


class Preview:
  """Samples for a fixed list of prompts."""

  def __init__(
    self,
    settings: config.Sample,
    score: config.Score,
    tokenizer: Any,
    eos_ids: Sequence[int],
    held_out: Prepared | None,
  ):
    """Raises UserError for a file of prompts that cannot be used."""
    self._settings, self._tokenizer = settings, tokenizer
    self._eos_ids = tuple(eos_ids)
    self._judge = pattern_score(score.pattern) if score.pattern else None
    self._prompts = self._choose_prompts(held_out)

  def write(
    self, workdir: pathlib.Path, step: int, definition: Definition, params: Any
  ) -> dict[str, float]:
    """Samples, and puts them into samples/samples.jsonl under `step`.

    Returns: the mean score of each scorer, as `samples/NAME`.
    """
    if not self._prompts:
      return {}
    samples = self._sample(definition, params)
    if jax.process_index() == 0:
      replace_samples(workdir / "samples" / "samples.jsonl", step, samples)
    if self._judge is None:
      return {}
    scores = [each["scores"]["pattern"] for each in samples]
    return {"samples/pattern": float(np.mean(scores))}

  def _sample(
    self, definition: Definition, params: Params
  ) -> list[dict[str, Any]]:
    settings = self._settings
    prompts = [p for p in self._prompts for _ in range(settings.per_prompt)]
    responses = generate(
      definition,
      params,
      prompts,
      max_new_tokens=settings.max_new_tokens,
      temperature=settings.temperature,
      top_k=settings.top_k,
      top_p=settings.top_p,
      eos_ids=self._eos_ids,
      seed=settings.seed,
    )
    texts = self._decode(responses)
    samples = [
      {"prompt": prompt, "response": response, "seed": settings.seed}
      for prompt, response in zip(self._decode(prompts), texts, strict=True)
    ]
    if self._judge is not None:
      for sample, score in zip(samples, self._judge(texts), strict=True):
        sample["scores"] = {"pattern": score}
    return samples

  def _decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
    return [
      self._tokenizer.decode(each, skip_special_tokens=True) for each in ids
    ]

  def _choose_prompts(self, held_out: Prepared | None) -> list[list[int]]:
    if not self._settings.num_prompts:
      return []
    if self._settings.prompts:
      path, count = self._settings.prompts, self._settings.num_prompts
      prompts = read_prompts(pathlib.Path(path), count)
      return [self._encode(prompt) for prompt in prompts]
    if held_out is None:
      return []
    count = min(self._settings.num_prompts, len(held_out.prompt_lengths))
    return [held_out.prompt(i).tolist() for i in range(count)]

  def _encode(self, prompt: Any) -> list[int]:
    """A text with the tokenizer's BOS, or messages in its chat template."""
    rules = Rules(self._tokenizer)
    if isinstance(prompt, str):
      return [*rules.prefix, *rules.encode([prompt])[0].ids]
    try:
      text = self._tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True
      )
    except Exception as error:  # whatever a template raises
      raise UserError(
        "config.sample.prompts: a prompt cannot be written by the tokenizer's "
        f"chat template ({type(error).__name__}: {error}). Give texts, or "
        "messages such as [{'role': 'user', 'content': ...}]."
      ) from error
    return rules.encode([text])[0].ids


def replace_samples(
  path: pathlib.Path, step: int, samples: list[dict[str, Any]]
) -> None:
  """Rewrites the file with the samples of other steps and these."""
  lines = []
  if path.exists():
    old = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    lines = [each for each in old if each["step"] != step]
  lines += [{"step": step, **sample} for sample in samples]
  path.parent.mkdir(exist_ok=True)
  with replacing(path) as partial:
    partial.write_text("".join(json.dumps(each) + "\n" for each in lines))
