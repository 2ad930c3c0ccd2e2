"""Configs: what is given, cast, refused, and that all of it is read."""

import ast
import copy
import dataclasses
import inspect
import pathlib

import ml_collections
import pytest

import jaxpref
from jaxpref import config, sharding
from jaxpref.errors import UserError


def _keys(section, prefix=""):
  """'data.seed' and so on of all settings, however deep."""
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      yield from _keys(value, f"{prefix}{field.name}.")
    elif prefix:
      yield prefix + field.name


FIELDS = list(_keys(config.Config()))


def _get(value, key):
  for name in key.split("."):
    value = value[name] if isinstance(value, dict) else getattr(value, name)
  return value


def _sources(**given):
  return {"data": {"sources": given}}


def _curriculum(**given):
  return {"data": {"curriculum": given}}


def test_defaults_alone():
  built = config.build({})
  assert built == config.Config()
  assert built.data.batch_size == 64
  assert built.stages == ("fit",)


def test_what_differs_is_laid_over_the_defaults():
  built = config.build({"data": {"seed": 3}, "stages": ["prepare"]})
  assert built.data == dataclasses.replace(config.Data(), seed=3)
  assert built.stages == ("prepare",)
  assert built.optimizer == config.Optimizer()


def test_configs_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.build({}).data.seed = 1


@pytest.mark.parametrize(
  ("tree", "message"),
  [
    ({"dta": {}}, r"unknown key config\.dta\. Did you mean 'data'\?"),
    (
      {"data": {"bach_size": 1}},
      r"unknown key config\.data\.bach_size\. Did you mean 'batch_size'\?",
    ),
    ({"mesh": {"zzz": 1}}, r"config\.mesh\.zzz\. Known: data, fsdp, tensor"),
    ({"data": 5}, r"config\.data is 5; it is a section"),
    ({"loss": "dpo"}, r"config\.loss is 'dpo'; it is a section"),
    ({"data": {"seed": 1.5}}, r"data\.seed is 1\.5; .* a whole number"),
    ({"data": {"seed": True}}, r"data\.seed is True; .* a whole number"),
    ({"data": {"seed": "x"}}, r"data\.seed is 'x'; .* a whole number"),
    ({"data": {"shuffle": 1}}, r"data\.shuffle is 1; .* true or false"),
    ({"optimizer": {"eps": "x"}}, r"optimizer\.eps is 'x'; .* a number"),
    ({"optimizer": {"eps": True}}, r"optimizer\.eps is True; .* a number"),
    ({"optimizer": {"eps": None}}, r"optimizer\.eps is None; .* a number"),
    ({"data": {"path": ["a"]}}, r"data\.path is \['a'\]; it must be str"),
    ({"model": {"arch": 3}}, r"model\.arch is 3; it must be Mapping"),
    ({"stages": 3}, r"config\.stages is 3"),
    ({"stages": ["train"]}, "names 'train'; it may hold 'prepare' and 'fit'"),
    ({"data": {"batch_size": 0}}, r"data\.batch_size is 0; .* at least 1"),
    ({"train": {"steps": -1}}, r"train\.steps is -1; .* not be negative"),
    (
      {"optimizer": {"learning_rate": float("nan")}},
      r"learning_rate is nan; it must not be negative",
    ),
    ({"optimizer": {"b2": 1}}, r"optimizer\.b2 is 1\.0; it must be below 1"),
    ({"sample": {"top_p": 0}}, r"top_p is 0\.0; it must be above 0"),
    ({"model": {"lora": 8}}, r"config\.model\.lora is 8; it is a section"),
    ({"model": {"lora": {"r": 8}}}, r"key config\.model\.lora\.r\. Did .*'rs'"),
    ({"model": {"lora": {"rank": -1}}}, r"lora\.rank is -1; .* negative"),
    (
      {"model": {"lora": {"rank": 4, "alpha": 0}}},
      r"alpha is 0\.0; .* above 0",
    ),
    ({"model": {"lora": {"rank": 4, "dropout": 1}}}, r"is 1\.0; .* below 1"),
    (
      {"model": {"lora": {"targets": "q_proj", "rank": 0}}},
      r"lora is given without a rank.* Set config\.model\.lora\.rank",
    ),
    ({"model": {"prompt": {"length": -1}}}, r"length is -1; .* negative"),
    (
      {"model": {"prompt": {"length": 4}, "lora": {"path": "x"}}},
      r"prompt and config\.model\.lora are both set",
    ),
    (
      {"model": {"prompt": {"path": "x"}, "family": "sdxl"}},
      r"prompt is for models of text",
    ),
    (
      _curriculum(criterion="length", stages=2)
      | {"model": {"prompt": {"length": 4}}},
      r"virtual tokens cannot be added to weights",
    ),
    (_curriculum(stages=2), r"curriculum is given without a criterion"),
    (_curriculum(criterion="length", stages=0), r"has stages=0 and stage=-1"),
    (
      _curriculum(criterion="length", stages=2, stage=2),
      r"stages=2 and stage=2; .* from 0, or -1",
    ),
    (
      _curriculum(criterion="length", stages=2, refresh=False),
      r"refresh is False.*config\.model\.path is empty",
    ),
    (
      _curriculum(criterion="length", stages=2)
      | {"model": {"lora": {"path": "x"}}},
      r"each stage of a curriculum starts a new one",
    ),
    (_sources(a=2), r"config\.data\.sources\.a is 2; it is a section"),
    (_sources(a={"pth": "x"}), r"data\.sources\.a\.pth\. Did you .* 'path'"),
    (_sources(a={"weight": 1}), r"config\.data\.sources\.a has no path"),
    (
      _sources(a={"path": "x", "weight": -1}),
      r"sources\.a\.weight is -1\.0; it must be",
    ),
    (
      _sources(a={"path": "x", "weight": 1}, b={"path": "y"}),
      r"gives no weight to b\. Give one to every source",
    ),
    (
      {"data": {"path": "x", "sources": {"a": {"path": "y"}}}},
      r"data\.sources names the data, and config\.data\.path",
    ),
    ({"data": {"encode": "later"}}, "'later'; choose one of before, during"),
    ({"data": {"aspect_buckets": 0}}, r"aspect_buckets is 0; .* at least 1"),
    ({"data": {"flip": 1.5}}, r"data\.flip is 1\.5; .* and at most 1"),
    (
      {"data": {"truncate": "cut"}},
      r"'cut'; choose one of drop, keep_start, keep_end",
    ),
  ],
)
def test_refused(tree, message):
  with pytest.raises(UserError, match=message):
    config.build(tree)


@pytest.mark.parametrize("key", config.checks.CHOICES)
def test_choices_hold_their_defaults(key):
  section, name = key.split(".")
  choices = config.checks.CHOICES[key]
  for choice in choices:
    built = config.build({section: {name: choice}})
    assert _get(built, key) == choice


def test_casts():
  built = config.build(
    {
      "optimizer": {"learning_rate": 1, "grad_clip": 0},
      "data": {"path": 2024},
      "stages": "prepare",
    }
  )
  assert repr(built.optimizer.learning_rate) == "1.0"
  assert repr(built.optimizer.grad_clip) == "0.0"
  assert built.data.path == "2024"
  assert built.stages == ("prepare",)


def test_loss_options_stand_beside_its_name():
  built = config.build({"loss": {"name": "ipo", "beta": 0.1}})
  assert built.loss == config.Loss(name="ipo", options={"beta": 0.1})
  assert config.build({"loss": {"beta": 2}}).loss.name == "dpo"


def test_round_trip():
  tree = {
    "model": {"arch": {"hidden_size": 64, "rope_scaling": {"factor": 2.0}}},
    "loss": {"name": "dpo", "beta": 0.2, "label_smoothing": 0.1},
    "optimizer": {"learning_rate": 1e-5},
    "stages": ["prepare", "fit"],
  }
  built = config.build(tree)
  plain = config.to_dict(built)
  assert plain["loss"] == tree["loss"]
  assert plain["model"]["arch"] == tree["model"]["arch"]
  assert plain["stages"] == ["prepare", "fit"]
  assert plain["mesh"] == {"data": 1, "fsdp": -1, "tensor": 1}
  assert config.build(plain) == built


@pytest.mark.parametrize("key", FIELDS)
def test_every_field_can_be_set(key):
  """By a value other than its default, which to_dict then tells."""
  if key.startswith("loss."):
    return  # above
  default = _get(config.Config(), key)
  known = config.checks.CHOICES.get(key)
  if known:
    value = known[-1]
  elif isinstance(default, bool):
    value = not default
  elif isinstance(default, str):
    value = "other"
  elif isinstance(default, (int, float)):
    value = default / 2 if isinstance(default, float) else abs(default) + 1
  elif key == "diffusion.timesteps":
    value = [0, 500]
  elif isinstance(default, tuple):
    value = ["a", "b"]
  elif key == "data.sources":
    value = {"own": {"path": "x", "format": "hh", "weight": 0.5}}
  elif key == "score.models":
    value = {"pick": "x"}
  else:
    value = {"hidden_size": 8}
  section, _, name = key.rpartition(".")
  needed = {  # what is off without a key of its own
    "model.lora": {"model": {"lora": {"rank": 4}}},
    "data.curriculum": {
      "data": {"curriculum": {"criterion": "logp_gap", "stages": 3}},
      "model": {"path": "x"},
    },
  }.get(section, {})
  given, tree = config.build(needed), copy.deepcopy(needed)
  inner = tree
  for part in section.split("."):
    inner = inner.setdefault(part, {})
  inner[name] = value
  built = config.build(tree)
  assert _get(config.to_dict(built), key) == value
  if known is None or len(known) > 1:
    assert (built == given) == (value == default)


def _names_read():
  """Attributes read anywhere in the package but in config.py."""
  root = pathlib.Path(jaxpref.__file__).parent
  return {
    node.attr
    for path in root.rglob("*.py")
    if path.name != "config.py" or path.parent != root
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
  }


def test_every_field_is_read():
  """A setting that nothing reads is a promise that nothing keeps."""
  read = _names_read()
  # Read all at once: make_mesh(**asdict(mesh)).
  read |= set(inspect.signature(sharding.make_mesh).parameters)
  # A choice of one: there is nothing to tell apart yet.
  only = {
    key for key, known in config.checks.CHOICES.items() if len(known) == 1
  }
  unread = [
    key for key in FIELDS if key.split(".")[-1] not in read and key not in only
  ]
  assert unread == []


def test_keys_of_tables_exist():
  tables = {*config.checks.CHOICES, *config.checks.POSITIVE, *config.PATHS}
  assert tables <= set(FIELDS)


FILE = """
import ml_collections

def get_config():
  config = ml_collections.ConfigDict()
  config.loss = {"name": "dpo", "beta": 0.1}
  config.data = {"batch_size": 8}
  return config
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "recipe.py"
  path.write_text(FILE)
  return str(path)


def test_load_lays_file_and_overrides_over_the_defaults(file):
  built, module = config.load(
    file,
    {
      "data.seed": "7",
      "data.path": "2024",
      "data.shuffle": "False",
      "optimizer.learning_rate": "1e-3",
      "optimizer.grad_clip": "0",
      "model.arch": "{'hidden_size': 64}",
      "model.lora.rank": "8",
      "model.lora.targets": "q_proj|v_proj",
      "loss.label_smoothing": "0.1",
      "stages": "('prepare', 'fit')",
    },
  )
  assert built.data == config.Data(
    batch_size=8, seed=7, path="2024", shuffle=False
  )
  assert built.optimizer == config.Optimizer(learning_rate=1e-3, grad_clip=0.0)
  assert built.model.arch == {"hidden_size": 64}
  assert built.model.lora == config.Lora(rank=8, targets="q_proj|v_proj")
  assert built.loss.options == {"beta": 0.1, "label_smoothing": 0.1}
  assert built.stages == ("prepare", "fit")
  assert isinstance(module.get_config(), ml_collections.ConfigDict)


def test_an_override_switches_an_option_off(file):
  built, _ = config.load(file, {"data.eval_path": "", "data.batch_size": "1"})
  assert built.data.eval_path == ""
  assert built.data.batch_size == 1


def test_sources_are_named_on_the_command_line(file):
  built, _ = config.load(
    file,
    {
      "data.sources.hh.path": "hh.jsonl",
      "data.sources.hh.weight": "3",
      "data.sources.own": "{'path': 'gs://bucket/own', 'weight': 1}",
    },
  )
  sources = config.with_absolute_paths(built).data.sources
  assert sources["own"] == config.Source(path="gs://bucket/own", weight=1.0)
  assert sources["hh"].weight == 3.0
  assert sources["hh"].path == str(pathlib.Path("hh.jsonl").absolute())


def test_another_loss_starts_afresh(file):
  """beta=0.1 was meant for dpo; the same name again keeps it."""
  built, _ = config.load(file, {"loss.name": "sft"})
  assert built.loss == config.Loss(name="sft")
  built, _ = config.load(file, {"loss.name": "dpo", "loss.beta": "0.3"})
  assert built.loss.options == {"beta": 0.3}


@pytest.mark.parametrize(
  ("key", "text", "message"),
  [
    ("data.sed", "1", r"recipe\.py: unknown key config\.data\.sed.*'seed'"),
    ("dat.seed", "1", r"unknown key config\.dat\. Did you mean 'data'"),
    ("data", "1", r"config\.data is '1'; it is a section"),
    ("data.seed.deep", "1", r"data\.seed is \{'deep': .*whole number"),
    ("data.seed", "1.0", r"data\.seed is 1\.0; it must be a whole number"),
    ("data.batch_size", "__import__('os')", "must be a whole number"),
  ],
)
def test_overrides_refused(file, key, text, message):
  with pytest.raises(UserError, match=message):
    config.load(file, {key: text})


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("x = 1", "defines no get_config"),
    ("def get_config():\n  return {}", "returned dict; it must return"),
    ("import no_such_module_at_all", "cannot be run: ModuleNotFoundError"),
    ("def get_config(:", "cannot be run: SyntaxError"),
  ],
)
def test_files_refused(tmp_path, text, message):
  path = tmp_path / "recipe.py"
  path.write_text(text)
  with pytest.raises(UserError, match=message) as told:
    config.load(str(path), {})
  assert "recipe.py" in str(told.value)


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match=r"gone\.py: there is no such file"):
    config.load(str(tmp_path / "gone.py"), {})


def test_absolute_paths(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "someone"))
  model = {"path": "~/model", "lora": {"path": "adapter"}}
  tree = {"data": {"path": "a/../b"}, "model": model}
  built = config.with_absolute_paths(config.build(tree))
  assert built.data.path == str(tmp_path / "b")
  assert built.model.path == str(tmp_path / "someone" / "model")
  assert built.model.lora.path == str(tmp_path / "adapter")
  assert built.data.eval_path == ""  # off stays off
  assert config.with_absolute_paths(built) == built


@pytest.mark.parametrize(
  ("name", "told"),
  [
    ("bacth_size", "Did you mean 'batch_size'?"),
    ("zebra", "Known: batch_size, seed."),
  ],
)
def test_nearest(name, told):
  assert config.nearest(name, ["seed", "batch_size"]) == told


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path))
  assert config.cache_folder() == tmp_path
  monkeypatch.delenv("JAXPREF_CACHE")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert config.cache_folder() == tmp_path / ".cache" / "jaxpref"
