"""Runs of seconds: a one-layer Llama of width 16 on simulated comparisons."""

from collections.abc import Callable, Mapping
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxpref.data import simulated


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("simulated") / "corpus"
  return simulated.write_corpus(
    folder, num_stories=300, num_comparisons=96, seed=0
  )


@pytest.fixture(scope="session")
def tiny(corpus: pathlib.Path) -> Mapping[str, Any]:
  """Overrides of configs/dpo.py."""
  arch = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
  return {
    "model.tokenizer": corpus / "tokenizer",
    "model.arch": json.dumps(arch),
    "model.remat": "",
    "data.path": corpus / "comparisons.jsonl",
    "data.eval_holdout": 16,
    "data.max_length": 128,
    "data.row_length": 512,
    "data.batch_size": 4,
    "optimizer.learning_rate": 1e-2,
    "sample.num_prompts": 0,
    "train.steps": 60,
    "train.checkpoint_every": 7,
  }


@pytest.fixture(scope="session")
def metrics() -> Callable[[pathlib.Path], list[dict[str, Any]]]:
  """metrics(workdir) -> the objects of metrics.jsonl."""

  def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]

  return read


@pytest.fixture(scope="session")
def last_checkpoint() -> Callable[[pathlib.Path], dict[str, np.ndarray]]:
  """last_checkpoint(workdir) -> its arrays: parameters, moments, step, key."""
  return _last_checkpoint


@pytest.fixture(scope="session")
def assert_same_run(
  metrics: Callable[[pathlib.Path], list[dict[str, Any]]],
) -> Callable[[pathlib.Path, pathlib.Path], None]:
  """Asserts that two finished runs agree in every bit, times excepted."""

  def told(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [
      {
        key: x
        for key, x in line.items()
        if "_per_second" not in key and key != "data/wait_share"
      }
      for line in metrics(workdir)
    ]

  def check(one: pathlib.Path, other: pathlib.Path) -> None:
    assert told(one) == told(other)
    left, right = (
      load_file(each / "export" / "model.safetensors") for each in (one, other)
    )
    assert left.keys() == right.keys()
    for name in left:
      np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    left, right = _last_checkpoint(one), _last_checkpoint(other)
    assert left.keys() == right.keys()
    for name in left:
      np.testing.assert_array_equal(left[name], right[name], err_msg=name)

  return check


def _last_checkpoint(workdir: pathlib.Path) -> dict[str, Any]:
  import orbax.checkpoint as ocp

  steps = [int(each.name) for each in (workdir / "checkpoints").iterdir()]
  folder = workdir.absolute() / "checkpoints" / str(max(steps)) / "default"
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.metadata(folder).item_metadata
    like = {key: np.empty(x.shape, x.dtype) for key, x in dict(tree).items()}
    return checkpointer.restore(folder, like)
