"""A run of a language or reward model: on packed text."""

from collections.abc import Callable
import functools
import pathlib

import jax
import numpy as np

from jaxpref import config, sharding
from jaxpref.data import tokenizer as tokenizers
from jaxpref.data.curriculum import LogProbs
from jaxpref.data.prepared import Prepared, prepare
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.choose import find_objective
from jaxpref.fit.examples import order_examples, read_examples
from jaxpref.fit.flops import step_flops
from jaxpref.fit.loss import find_loss, rated_axes, trains_rewards
from jaxpref.fit.preview import Preview
from jaxpref.fit.put import put_batch
from jaxpref.fit.reference import open_reference, response_logp, with_mode
from jaxpref.fit.task import Task
from jaxpref.fit.usable import kept_responses
from jaxpref.hosts import say
from jaxpref.models import huggingface
from jaxpref.models.adapter import save_adapter
from jaxpref.models.heads import padding
from jaxpref.models.llama.flops import Tree
from jaxpref.models.prompt_file import save_prompt
from jaxpref.models.source import Source, eos_ids, open_source, reward_names
from jaxpref.ops.attention import resolve_backend
from jaxpref.types import Params


def text_task(
  settings: config.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Task | None:
  """Of a language or reward model; None where there is nothing to train."""
  _check_complete(settings)
  rewards = trains_rewards(settings)
  resolve_backend(settings.model.attention, sharding.platform(mesh))
  folder = settings.model.tokenizer or settings.model.path
  tokenizer = tokenizers.load(folder)
  axes = (
    rated_axes(find_loss(settings.loss), reward_names(settings.model))
    if rewards
    else ()
  )
  open_model = functools.partial(
    open_source,
    settings.model,
    seed=settings.train.seed,
    tokenizer=tokenizer,
    rewards=rewards,
  )
  put = functools.partial(put_batch, mesh)

  def logp(data: Prepared) -> np.ndarray:
    """Of each response, before training."""
    source, steps = open_model(), _step_maker(settings, mesh)(data)
    _check_suits(source, data)
    return response_logp(settings, source, mesh, steps, put)

  log_probs = None if rewards else logp
  train, test = read_examples(
    settings, lambda data, path: prepare(data, path, folder), axes, log_probs
  )
  if "fit" not in settings.stages:
    return None
  source = open_model()
  _check_suits(source, train, test)
  definition = source.definition
  steps, test_steps = _make_steps(settings, train, test, mesh, log_probs)
  settings = with_mode(settings, steps.see_all)
  stops_at = eos_ids(source, tokenizer)
  samples = Preview(settings.sample, settings.score, tokenizer, stops_at, test)

  def preview(number: int, params: Params) -> dict[str, float]:
    if rewards:  # those write no text
      return {}
    return samples.write(workdir, number, definition, params)

  def export(trained: Params, whole: Params) -> pathlib.Path:
    virtual = definition.prompt.length  # which no weights can hold
    if not virtual:
      huggingface.save_pretrained(
        workdir / "export",
        definition,
        whole,
        tokenizer_folder=folder,
        pad_token=padding(tokenizer, stops_at) if rewards else None,
      )
    if source.base:
      save = save_prompt if virtual else save_adapter
      save(workdir / "adapter", definition, trained, settings.model.path)
    return workdir / ("adapter" if virtual else "export")

  return Task(
    settings=settings,
    definition=definition,
    load=source.load,
    base=source.identity if source.base else "",
    train=train,
    test=test,
    steps=steps,
    test_steps=test_steps,
    put=put,
    objective=functools.partial(find_objective, definition, settings),
    open_reference=lambda: open_reference(
      settings, source, mesh, steps, test_steps, put
    ),
    flops=lambda number: step_flops(
      settings, definition, map(Tree._make, steps.lengths(number))
    ),
    preview=preview,
    export=export,
  )


def _check_complete(settings: config.Config) -> None:
  if not (settings.model.path or settings.model.tokenizer):
    raise UserError(
      "config.model.path is empty. Give a Hugging Face folder with "
      "config.json, safetensors and a tokenizer; or, for random weights, "
      "config.model.arch and a folder with a tokenizer in "
      "config.model.tokenizer."
    )


def _check_suits(source: Source, *parts: Prepared | None) -> None:
  """Raises UserError where the model cannot take the tokens."""
  shape, virtual = source.definition.config, source.definition.prompt.length
  size = shape.vocab_size
  largest = max(part.max_token for part in parts if part)
  if largest >= size:
    raise UserError(
      f"The tokenizer gives token {largest}, and the model's vocabulary has "
      f"{size} entries. Set config.model.tokenizer to the model's own."
    )
  longest = virtual + max(part.max_length for part in parts if part)
  if (
    shape.rope_parameters.rope_type == "dynamic"
    and longest > shape.max_position_embeddings
  ):
    # It stretches by the longest sequence seen, which packing would change.
    raise UserError(
      f"The model's 'dynamic' RoPE changes beyond "
      f"{shape.max_position_embeddings} tokens, and the data have sequences of "
      f"{longest}. Set config.data.max_length to at most "
      f"{shape.max_position_embeddings - virtual}."
    )


def _make_steps(
  settings: config.Config,
  train: Prepared,
  test: Prepared | None,
  mesh: jax.sharding.Mesh,
  log_probs: LogProbs | None,
) -> tuple[Steps, Steps | None]:
  loss, make = find_loss(settings.loss), _step_maker(settings, mesh)
  order, num_steps = order_examples(settings, train, log_probs)
  steps = make(
    train,
    kept=kept_responses(train, loss),
    order=order,
    num_steps=num_steps,
  )
  _tell_of_empty_rows(steps)
  return steps, make(test, kept=kept_responses(test, loss)) if test else None


def _step_maker(
  settings: config.Config, mesh: jax.sharding.Mesh
) -> Callable[..., Steps]:
  data = settings.data
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  return functools.partial(
    Steps,
    batch_size=data.batch_size,
    rows=data.rows_per_device * devices,
    row_length=data.row_length,
    share_prompts=data.share_prompts,
    buckets=data.buckets,
    prefix=settings.model.prompt.length,
  )


def _tell_of_empty_rows(steps: Steps) -> None:
  """Says so where a whole step has too few prompts for its rows."""
  packing, shape = steps.packing(0)
  pieces = [len(row) for micro in packing for row in micro]
  rows = shape.micro_batches * shape.rows
  empty = rows - np.count_nonzero(pieces)
  if empty and sum(pieces) < rows:
    enough = -(-rows * len(steps.examples(0)) // sum(pieces))
    say(
      f"Warning: {empty} of the {rows} rows of a step hold nothing, and are "
      f"computed all the same. A config.data.batch_size of {enough} fills "
      "them; fewer rows are had by a lower config.data.rows_per_device, or "
      "fewer devices in config.mesh.data and config.mesh.fsdp."
    )
