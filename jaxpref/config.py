"""The settings of a run: frozen dataclasses, the only source of defaults.

A config file's `get_config()` returns an ml_collections ConfigDict of what
differs; it is laid over these defaults, then the command line's overrides.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any, dataclass_transform, get_args, get_type_hints

import ml_collections

from jaxpref import config_checks as checks
from jaxpref.config_values import Override, cast, plain
from jaxpref.errors import UserError, nearest
from jaxpref.files import import_file


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _section(cls: type) -> Any:
  return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@_section
class Lora:
  """Low-rank adapters, which train while the model's weights stay."""

  rank: int = 0  # 0 = off: all weights train
  alpha: float = 16.0  # the adapter's output is scaled by alpha / rank
  rs: bool = False  # by alpha / sqrt(rank) instead
  targets: str = ".*_proj"  # a regular expression of layers' names
  dropout: float = 0.0  # of the adapter's inputs, in training
  path: str = ""  # a PEFT adapter to start from; it says all but dropout


@_section
class Prompt:
  """Virtual tokens before every text, which train while the weights stay."""

  length: int = 0  # how many; 0 = off
  path: str = ""  # a PEFT folder to start from, which says how many


@_section
class Model:
  family: str = "llama"
  path: str = ""  # a Hugging Face folder; '' = random weights from `arch`
  tokenizer: str = ""  # a folder with a tokenizer; '' = that of `path`
  # A shape by keys of config.json, or the name of a `preset` and what differs.
  arch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  dtype: str = "auto"  # of compute: bfloat16 on accelerators, float32 on CPU
  param_dtype: str = "float32"  # others are for weights below an adapter
  remat: str = "nothing_saveable"  # a jax.checkpoint policy; '' = keep all
  attention: str = "auto"  # what computes it: auto | xla | cudnn | splash
  head_block: int = 2048  # vocabulary entries scored at a time
  # Of a reward model; () = its own, or one. Several train on the data's scores
  # of these names.
  reward_axes: tuple[str, ...] = ()
  lora: Lora = Lora()
  prompt: Prompt = Prompt()

  @property
  def adapts(self) -> bool:
    """Whether the weights stay, and something beside them trains."""
    return self.lora.rank > 0 or self.prompt.length > 0

  @property
  def adapter_path(self) -> str:
    """The folder of what trained beside them before; '' for none."""
    return self.lora.path or self.prompt.path


@_section
class Reference:
  mode: str = "auto"  # auto | live | cached | base | none
  fill: str = "before"  # when what is cached is computed: before | during
  path: str = ""  # a Hugging Face folder; '' = the policy before training


@_section
class Source:
  """One of several data sets that a run is mixed of."""

  path: str = ""  # as data.path
  format: str = "auto"
  weight: float = 0.0  # its share of a step; 0 of all = as their sizes


@_section
class Curriculum:
  """Comparisons from easy to hard; see jaxpref/data/curriculum.py."""

  # score_gap | logp_gap | length | FILE.py:FUNCTION; '' = off
  criterion: str = ""
  model: str = ""  # whose log-probs logp_gap takes; '' = the reference's
  stages: int = 1  # runs in a row, each on harder ones; 1 = an order within one
  stage: int = -1  # only this one, from 0; -1 = all
  per_prompt: bool = False  # cut each prompt's comparisons; else all together
  refresh: bool = True  # a stage's reference is what the one before it trained


@_section
class Data:
  path: str = ""  # a file, a folder of files, a pattern (*.parquet), a URL
  format: str = "auto"
  # In place of both: several, by a name for each.
  sources: Mapping[str, Source] = dataclasses.field(default_factory=dict)
  curriculum: Curriculum = Curriculum()
  eval_path: str = ""
  eval_holdout: int = 0  # examples of `path` kept for evaluation
  max_length: int = 1024  # tokens of one prompt plus one response
  max_prompt_length: int = 0  # tokens; 0 = no limit of its own
  truncate: str = "drop"  # drop | keep_start | keep_end
  share_prompts: bool = True
  row_length: int = 4096  # tokens a packed row may hold
  rows_per_device: int = 1  # rows of one micro-batch on one device
  batch_size: int = 64  # prompts a step
  buckets: int = 1  # shapes that steps are padded to; each is compiled
  resolution: int = 0  # pixels of an image's sides; 0 = the model's own
  # Shapes of as many pixels, from tall to wide, one of which a prompt's images
  # are cut to; each is compiled. 1 = the square.
  aspect_buckets: int = 1
  flip: float = 0.0  # the share of draws in which images are mirrored
  encode: str = "before"  # when images and captions are: before | during
  shuffle: bool = True
  seed: int = 0
  epochs: int = 1
  max_rejected: float = 0.01  # of the rows; more stops the run


@_section
class Loss:
  """`name`, and in `options` that function's own keyword arguments."""

  name: str = "dpo"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@_section
class Diffusion:
  """How images are noised in training."""

  timesteps: tuple[int, ...] = ()  # one of these each; () = any of the model's
  share_timestep: bool = True  # by the images of a prompt
  share_noise: bool = True  # likewise
  # Above 0, the noise is not random but what leads the model to the image, by
  # so many steps from the image to pure noise (SmPO); as many calls, twice.
  inversion_steps: int = 0
  # How many noises and timesteps a prompt has, in turn by epoch; 0 = another
  # each time. reference.mode=cached needs them to come again.
  noise_bank: int = 0
  drop_caption: float = 0.0  # the share of draws in which the prompt is ''


@_section
class Optimizer:
  name: str = "adamw"
  learning_rate: float = 1e-6
  schedule: str = "linear"  # constant | linear | cosine, to zero
  warmup_steps: int = 0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  grad_clip: float = 1.0  # largest global norm; 0 = off
  ema: float = 0.0  # decay of an average of what trains, the result; 0 = off


@_section
class Train:
  steps: int = 0  # wins over data.epochs when > 0
  log_every: int = 1
  eval_every: int = 0  # steps; 0 = before and after only
  checkpoint_every: int = 100  # steps; 0 = at the end only
  seed: int = 0
  guard: str = ""  # warn | stop, where both sides of pairs get less likely


@_section
class MeshShape:
  data: int = 1
  fsdp: int = -1  # -1 = the devices that are left
  tensor: int = 1


@_section
class Sample:
  prompts: str = ""  # a file; '' = held-out prompts
  per_prompt: int = 1
  num_prompts: int = 8  # how many are sampled before and after; 0 = off
  max_new_tokens: int = 64
  temperature: float = 1.0  # 0 = greedy
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  # Of images, in the stage 'sample':
  sampler: str = ""  # '' = the one of the model's folder
  steps: int = 50
  guidance: float = 5.0  # up to 1 = without, at half the work
  guidance_rescale: float = 0.0  # 1 = the contrast there is without guidance
  negative_prompt: str = ""
  height: int = 0  # pixels, a multiple of 8; 0 = the model's own
  width: int = 0
  # What to start from: an image of that size, or a folder of one for each, as
  # another run's samples/; '' = noise.
  image: str = ""
  strength: float = 0.5  # the share of steps taken from there
  aesthetic_score: float = 6.0  # what SDXL's refiner is told of the image
  negative_aesthetic_score: float = 2.5  # and of what to keep away from


@_section
class Score:
  pattern: str = ""  # regular expression; the share of samples it matches
  rater: str = ""  # of sampled images: red; '' = none
  # What rates images too: folders of CLIP models, by the names of their scores.
  models: Mapping[str, str] = dataclasses.field(default_factory=dict)


@_section
class Pair:
  """How comparisons are made of scored responses."""

  rule: str = "best_worst"  # best_worst | best_rest | adjacent | all_pairs
  axis: str = ""  # the score that decides; '' = the first that the data have
  margin: float = 0.0  # responses whose scores differ by less are a tie
  ties: str = "drop"  # drop | keep | soften, see jaxpref/pair/rules.py


@_section
class Config:
  model: Model = Model()
  reference: Reference = Reference()
  data: Data = Data()
  loss: Loss = Loss()
  diffusion: Diffusion = Diffusion()
  optimizer: Optimizer = Optimizer()
  train: Train = Train()
  mesh: MeshShape = MeshShape()
  sample: Sample = Sample()
  score: Score = Score()
  pair: Pair = Pair()
  stages: tuple[str, ...] = ("fit",)


PATHS = (
  "model.path", "model.tokenizer", "model.lora.path", "model.prompt.path",
  "reference.path", "data.path", "data.eval_path", "data.curriculum.model",
  "sample.prompts", "sample.image",
)  # fmt: skip


def load(path: str, overrides: Mapping[str, str]) -> tuple[Config, Any]:
  """The config of a file under overrides such as {"data.seed": "1"}.

  Returns: the config, and the file's module.

  Raises UserError for a file that is missing or has no get_config(), an
  unknown key, or a value of the wrong type.
  """
  module = import_file(
    path, f"--config={path}", "get_config", example="configs/dpo.py"
  )
  given = module.get_config()
  if not isinstance(given, ml_collections.ConfigDict):
    raise UserError(
      f"{path}: get_config() returned {type(given).__name__}; it must return "
      "an ml_collections.ConfigDict."
    )
  tree = given.to_dict()
  loss = tree.get("loss")
  if isinstance(loss, dict) and (
    overrides.get("loss.name", loss.get("name")) != loss.get("name")
  ):
    del tree["loss"]  # its options are another loss's
  for key, text in overrides.items():
    _put(tree, key, text)
  return build(tree, source=path), module


def build(tree: Mapping[str, Any], *, source: str = "config") -> Config:
  """A Config of a nested dict that holds only what differs."""
  config = _section_from(Config, tree, "", source)
  _check_values(config)
  return config


def with_absolute_paths(config: Config) -> Config:
  """The config with ~ and relative paths spelled out.

  Then it means the same from every folder, and a rerun is told from another
  run rightly.
  """
  for key in PATHS:
    config = _replace(config, key, _absolute(_get(config, key)))
  sources = {
    name: dataclasses.replace(each, path=_absolute(each.path))
    for name, each in config.data.sources.items()
  }
  config = _replace(config, "data.sources", sources)
  raters = {name: _absolute(each) for name, each in config.score.models.items()}
  return _replace(config, "score.models", raters)


def to_dict(config: Config) -> dict[str, Any]:
  """A nested dict that `build` turns back into the config."""

  def as_tree(value: Any) -> Any:
    if isinstance(value, Loss):
      return {"name": value.name, **value.options}
    if dataclasses.is_dataclass(value):
      fields = dataclasses.fields(value)
      return {f.name: as_tree(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
      return {key: as_tree(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value

  return as_tree(config)


def cache_folder() -> pathlib.Path:
  """$JAXPREF_CACHE, or ~/.cache/jaxpref: what may be deleted at any time."""
  home = os.environ.get("JAXPREF_CACHE") or "~/.cache/jaxpref"
  return pathlib.Path(home).expanduser()


def _absolute(path: str) -> str:
  if not path or "://" in path:
    return path
  return os.path.abspath(os.path.expanduser(path))


def _put(tree: dict[str, Any], key: str, text: str) -> None:
  *sections, name = key.split(".")
  for section in sections:
    tree = tree.setdefault(section, {})
    if not isinstance(tree, dict):
      raise UserError(f"--config.{key}: {section!r} is not a section.")
  tree[name] = Override(text)


def _section_from(cls: Any, tree: Any, prefix: str, source: str) -> Any:
  if not isinstance(tree, Mapping):
    raise UserError(
      f"{source}: config.{prefix.rstrip('.')} is {tree!r}; it is a section, "
      "set its keys instead."
    )
  if cls is Loss:
    options = dict(tree)
    name = cast(str, options.pop("name", Loss.name), "loss.name", source)
    return Loss(name=name, options=plain(options))
  hints = get_type_hints(cls)
  values = {}
  for key, value in tree.items():
    if key not in hints:
      raise UserError(
        f"{source}: unknown key config.{prefix}{key}. {nearest(key, hints)}"
      )
    hint = hints[key]
    if dataclasses.is_dataclass(hint):
      values[key] = _section_from(hint, value, f"{prefix}{key}.", source)
    elif get_args(hint)[1:] == (Source,):
      named = cast(Mapping, value, prefix + key, source)
      values[key] = {
        name: _section_from(Source, each, f"{prefix}{key}.{name}.", source)
        for name, each in named.items()
      }
    else:
      values[key] = cast(hint, value, prefix + key, source)
  return cls(**values)


def _check_values(config: Config) -> None:
  for key, choices in checks.CHOICES.items():
    if (value := _get(config, key)) not in choices:
      raise UserError(
        f"config.{key} is {value!r}; choose one of "
        f"{', '.join(each or repr(each) for each in choices)}."
      )
  for key in checks.POSITIVE:
    if (value := _get(config, key)) < 1:
      raise UserError(f"config.{key} is {value}; it must be at least 1.")
  for section in ("data", "diffusion", "optimizer", "train", "sample", "pair"):
    for field in dataclasses.fields(getattr(config, section)):
      value = _get(config, key := f"{section}.{field.name}")
      if isinstance(value, (int, float)) and not value >= 0:
        raise UserError(f"config.{key} is {value}; it must not be negative.")
  checks.check_shares(config)
  checks.check_lora(config.model.lora)
  checks.check_prompt(config)
  checks.check_sources(config.data)
  checks.check_curriculum(config)
  checks.check_stages(config.stages)
  checks.check_raters(config.score.models)


def _get(config: Any, key: str) -> Any:
  for name in key.split("."):
    config = getattr(config, name)
  return config


def _replace(config: Any, key: str, value: Any) -> Any:
  name, _, rest = key.partition(".")
  if rest:
    value = _replace(getattr(config, name), rest, value)
  return dataclasses.replace(config, **{name: value})
