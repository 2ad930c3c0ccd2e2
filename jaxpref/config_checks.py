"""What values of settings go together, where that takes more than a table."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from jaxpref.errors import UserError

CHOICES: dict[str, tuple[str, ...]] = {
  "model.family": ("llama", "sdxl"),
  "model.dtype": ("auto", "float32", "bfloat16"),
  "model.param_dtype": ("float32", "bfloat16", "int8", "nf4"),
  "model.attention": ("auto", "xla", "cudnn", "splash"),
  "reference.mode": ("auto", "live", "cached", "base", "none"),
  "reference.fill": ("before", "during"),
  "data.encode": ("before", "during"),
  "data.truncate": ("drop", "keep_start", "keep_end"),
  "pair.rule": ("best_worst", "best_rest", "adjacent", "all_pairs"),
  "pair.ties": ("drop", "keep", "soften"),
  "score.rater": ("", "red"),
  "optimizer.name": ("adamw",),
  "optimizer.schedule": ("constant", "linear", "cosine"),
  "train.guard": ("", "warn", "stop"),
}
POSITIVE = (
  "model.head_block", "data.max_length", "data.row_length",
  "data.rows_per_device", "data.batch_size", "data.buckets",
  "data.aspect_buckets", "data.epochs", "train.log_every", "sample.per_prompt",
  "sample.max_new_tokens", "sample.steps",
)  # fmt: skip


def check_sources(data: Any) -> None:
  """Raises UserError where `data.sources` is not a mixture to train on."""
  sources = data.sources
  if sources and (data.path or data.format != "auto"):
    raise UserError(
      "config.data.sources names the data, and config.data.path or "
      "config.data.format is set too. Each source has a path and a format of "
      "its own; leave those of config.data as they are by default."
    )
  for name, each in sources.items():
    if not each.path:
      raise UserError(f"config.data.sources.{name} has no path; give one.")
    if not 0 <= each.weight < math.inf:
      raise UserError(
        f"config.data.sources.{name}.weight is {each.weight}; it must be a "
        "number above 0, or 0 for all sources."
      )
  zero = [name for name, each in sources.items() if each.weight == 0]
  if zero and len(zero) < len(sources):
    raise UserError(
      f"config.data.sources gives no weight to {', '.join(zero)}. Give one to "
      "every source, or to none: each example then comes once an epoch."
    )


def check_curriculum(config: Any) -> None:
  """Raises UserError for stages that cannot follow each other."""
  given = config.data.curriculum
  if given.stages < 1 or not -1 <= given.stage < given.stages:
    raise UserError(
      f"config.data.curriculum has stages={given.stages} and stage="
      f"{given.stage}; there must be at least one, and stage is one of them, "
      "from 0, or -1 for all."
    )
  if not given.criterion and given != type(given)():
    raise UserError(
      "config.data.curriculum is given without a criterion, and without one "
      "nothing is ordered. Set config.data.curriculum.criterion, for example "
      "to score_gap."
    )
  if given.model and given.criterion != "logp_gap":
    raise UserError(
      f"config.data.curriculum.model is {given.model!r}, and the criterion "
      f"{given.criterion!r} asks no model. Set it to '', or the criterion to "
      "logp_gap."
    )
  if given.criterion == "logp_gap" and config.model.family == "sdxl":
    raise UserError(
      "config.data.curriculum.criterion is 'logp_gap', and only a language "
      "model gives log-probabilities of texts. Choose score_gap."
    )
  whose = given.model or config.reference.path or config.model.path
  if given.stages > 1 and given.criterion == "logp_gap" and not whose:
    raise UserError(
      "config.data.curriculum orders the comparisons of all stages by the "
      "log-probs of the model before training, and config.model.path is empty: "
      "random weights are kept nowhere. Give a folder there, or in "
      "config.data.curriculum.model."
    )
  if given.stages > 1 and config.model.lora.path:
    raise UserError(
      "config.model.lora.path names an adapter to start from, and each stage "
      "of a curriculum starts a new one over the weights of the stage before. "
      "Add the adapter to the weights first, or set "
      "config.data.curriculum.stages=1."
    )
  if given.stages > 1 and not given.refresh and not config.model.path:
    raise UserError(
      "config.data.curriculum.refresh is False, so that all stages compare "
      "with the model before training, and config.model.path is empty: random "
      "weights are kept nowhere. Give a folder."
    )


def check_lora(lora: Any) -> None:
  """Raises UserError where `model.lora` is no adapter, nor switched off."""
  if lora.rank < 0:
    raise UserError(
      f"config.model.lora.rank is {lora.rank}; it must not be negative, and 0 "
      "trains all weights instead of an adapter."
    )
  if not lora.alpha > 0:
    raise UserError(
      f"config.model.lora.alpha is {lora.alpha}; it must be above 0, or the "
      "adapter would change nothing."
    )
  if not 0 <= lora.dropout < 1:
    raise UserError(
      f"config.model.lora.dropout is {lora.dropout}; it must be at least 0 and "
      "below 1."
    )
  if not (lora.rank or lora.path) and lora != type(lora)():
    raise UserError(
      "config.model.lora is given without a rank, and without one all weights "
      "would train. Set config.model.lora.rank, for example to 16."
    )


def check_prompt(config: Any) -> None:
  """Raises UserError for virtual tokens that cannot be had with the rest."""
  prompt, lora = config.model.prompt, config.model.lora
  if prompt.length < 0:
    raise UserError(
      f"config.model.prompt.length is {prompt.length}; it must not be "
      "negative, and 0 trains without virtual tokens."
    )
  if not (prompt.length or prompt.path):
    return
  if lora.rank or lora.path:
    raise UserError(
      "config.model.prompt and config.model.lora are both set, and one of them "
      "trains at a time. Leave out the length (and path) of the one, or the "
      "rank (and path) of the other."
    )
  if config.model.family != "llama":
    raise UserError(
      "config.model.prompt is for models of text, and config.model.family is "
      f"{config.model.family!r}. Leave it out."
    )
  if config.data.curriculum.stages > 1:
    raise UserError(
      "config.model.prompt cannot go through the stages of a curriculum: each "
      "begins with the weights that the one before it exported, and virtual "
      "tokens cannot be added to weights. Set config.data.curriculum.stages=1, "
      "or train an adapter by config.model.lora.rank."
    )


def check_shares(config: Any) -> None:
  """Raises UserError for what must be a share, and is not."""
  for name in ("b1", "b2", "ema"):
    if (value := getattr(config.optimizer, name)) >= 1:
      raise UserError(
        f"config.optimizer.{name} is {value}; it must be below 1."
      )
  if not 0 < config.sample.top_p <= 1:
    raise UserError(
      f"config.sample.top_p is {config.sample.top_p}; it must be above 0 and "
      "at most 1, which keeps all tokens."
    )
  if not config.diffusion.drop_caption < 1:
    raise UserError(
      f"config.diffusion.drop_caption is {config.diffusion.drop_caption}; it "
      "is the share of draws without a caption, at least 0 and below 1."
    )
  if not config.data.flip <= 1:
    raise UserError(
      f"config.data.flip is {config.data.flip}; it is the share of draws in "
      "which images are mirrored, at least 0 and at most 1."
    )


def check_stages(stages: Sequence[str]) -> None:
  """Raises UserError for a stage that there is not."""
  for stage in stages:
    if stage not in ("prepare", "sample", "score", "fit"):
      raise UserError(
        f"config.stages names {stage!r}; it may hold 'prepare' and 'fit', or "
        "'sample' and 'score' for images."
      )


def check_raters(models: Mapping[str, str]) -> None:
  """Raises UserError unless each name has a folder."""
  for name, folder in models.items():
    if not folder or name in _TAKEN:
      raise UserError(
        f"config.score.models.{name} is {folder!r}; it must be the folder of a "
        f"model, and its name none of {', '.join(_TAKEN)}, which are other "
        "scores."
      )


_TAKEN = ("red", "votes", "ensemble")
