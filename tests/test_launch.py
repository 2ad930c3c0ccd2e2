"""The command line in this process; tests/cli starts it as users do."""

import pathlib
import re

import pytest

from jaxpref import launch
from jaxpref.errors import UserError
import jaxpref.run

CONFIG = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({"data": {"seed": 3}})
"""


@pytest.fixture
def ran(monkeypatch):
  """(settings, workdir) of each run, instead of running it."""
  calls = []

  def run(settings, workdir):
    calls.append((settings, workdir))
    return True

  monkeypatch.setattr(jaxpref.run, "run", run)
  return calls


@pytest.fixture
def arguments(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  return [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]


def test_overrides_win(ran, arguments, tmp_path):
  given = ["--config.train.steps=7", "--config.mesh.fsdp", "-1"]
  assert launch.main([*arguments, *given]) == 0
  ((settings, workdir),) = ran
  assert settings.data.seed == 3
  assert settings.train.steps == 7
  assert settings.mesh.fsdp == -1
  assert workdir == tmp_path / "run"


@pytest.mark.parametrize("given", ["--conf.train.steps=1", "train.steps=1"])
def test_unknown_argument(ran, arguments, capsys, given):
  assert launch.main([*arguments, given]) == 2
  assert not ran
  assert given.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("after", [[], ["--config.data.seed=1"]])
def test_override_without_value(ran, arguments, capsys, after):
  assert launch.main([*arguments, "--config.train.steps", *after]) == 2
  assert "--config.train.steps=VALUE" in capsys.readouterr().err


def test_another_loss_leaves_the_files_options(ran, tmp_path):
  """Else configs/dpo.py, whose loss has beta, could not train by sft."""
  given = [f"--workdir={tmp_path}", "--config.loss.name=sft"]
  assert launch.main(["--config=configs/dpo.py", *given]) == 0
  assert ran[0][0].loss.name == "sft"
  assert not ran[0][0].loss.options
  assert launch.main(["--config=configs/dpo.py", given[0]]) == 0
  assert ran[1][0].loss.options == {"beta": 0.1}


def test_inputs_are_made_first(ran, arguments, tmp_path):
  text = "import dataclasses\ndef make_inputs(config, workdir):\n"
  text += "  return dataclasses.replace(config, stages=('prepare',))\n"
  (tmp_path / "config.py").write_text(CONFIG + text)
  assert launch.main(arguments) == 0
  assert ran[0][0].stages == ("prepare",)


def test_nothing_runs_where_making_inputs_was_interrupted(
  ran, arguments, tmp_path
):
  text = "def make_inputs(config, workdir):\n  return None\n"
  (tmp_path / "config.py").write_text(CONFIG + text)
  assert launch.main(arguments) == 0
  assert not ran


def test_message_is_one_paragraph(monkeypatch, arguments, capsys, tmp_path):
  path = pathlib.Path("/") / "a-name" / ("of-many-parts" * 12)

  def run(settings, workdir):
    raise UserError(f"The file {path} is missing. Give another one.")

  monkeypatch.setattr(jaxpref.run, "run", run)
  assert launch.main(arguments) == 2
  told = capsys.readouterr().err
  assert str(path) in told  # whole, for copying
  assert told.startswith("jaxpref: The file")
  assert "Traceback" not in told


def test_bug_keeps_its_traceback(monkeypatch, arguments):
  def run(settings, workdir):
    raise ZeroDivisionError

  monkeypatch.setattr(jaxpref.run, "run", run)
  with pytest.raises(ZeroDivisionError):
    launch.main(arguments)


def test_quickstart_resolves(monkeypatch, ran, tmp_path):
  """Two runs: the second starts from what the first exports."""
  arguments = [
    "--config=configs/quickstart.py",
    f"--workdir={tmp_path}",
    "--config.data.seed=5",
  ]
  assert launch.main(arguments) == 0
  (base, base_workdir), (second, workdir) = ran
  assert base_workdir == tmp_path / "base"
  assert base.loss.name == "sft"
  assert (pathlib.Path(base.model.tokenizer) / "tokenizer.json").is_file()
  assert workdir == tmp_path
  assert second.loss.name == "dpo"
  assert second.model.path == str(tmp_path / "base" / "export")
  assert second.data.seed == 5  # overrides stay
  assert second.data.eval_holdout > 0
  assert re.compile(second.score.pattern)
  for each in (base.data.path, second.data.path):
    assert pathlib.Path(each).stat().st_size > 100_000

  # SIGTERM in the first: the second does not begin.
  began = []
  monkeypatch.setattr(jaxpref.run, "run", lambda *given: began.append(given))
  assert launch.main(arguments) == 0
  assert [workdir for _, workdir in began] == [tmp_path / "base"]


def test_a_mistake_in_the_loss_is_told_before_inputs_are_made(tmp_path, capsys):
  status = launch.main(
    [
      "--config=configs/rank_dpo_shapes.py",
      f"--workdir={tmp_path / 'run'}",
      "--config.loss.betta=1",
    ]
  )
  assert status == 2
  assert "Did you mean 'beta'" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_given_data_take_the_place_of_simulated(tmp_path):
  status = launch.main(
    [
      "--config=configs/rank_dpo_shapes.py",
      f"--workdir={tmp_path / 'run'}",
      f"--config.model.path={tmp_path}",
      f"--config.data.path={tmp_path / 'mine.parquet'}",
    ]
  )
  assert status == 2
  assert not (tmp_path / "run" / "lists.parquet").exists()
