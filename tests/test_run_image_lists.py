"""One file of lists of images of every kind trains as it is."""

import json
import math

import numpy as np
from PIL import Image
import pytest

from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

pytestmark = pytest.mark.usefixtures("own_cache")
SIZES = ((20, 16), (16, 22), (16, 16), (40, 18))


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
  """Two to eight images a prompt, of which the red ones are better.

  Those of one color are a tie, and a file is missing.
  """
  folder = tmp_path_factory.mktemp("lists")
  rng = np.random.default_rng(0)
  rows = []
  for count in (*range(2, 9), 3):
    names = [f"{len(rows)}_{k}.png" for k in range(count)]
    for k, name in enumerate(names):
      color = (200, 60, 60) if k % 2 else (60, 60, 200)
      pixels = rng.normal(color, 20, (*SIZES[k % 4], 3)).clip(0, 255)
      Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    scores = [float(k % 2) for k in range(count)]
    row = {"prompt": f"number {count}", "images": names, "scores": scores}
    rows.append(row)
  (folder / rows[-1]["images"][1]).unlink()
  path = folder / "lists.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


PAIRS = sum((n // 2) * (n - n // 2) for n in range(2, 9))
"""How many are no tie."""


@pytest.mark.parametrize("loss", ["dpo", "rank_dpo"])
def test_lists_of_every_kind_train(lists, tiny_images, tmp_path, capsys, loss):
  settings = tiny_images(
    lists,
    {
      "data": {"batch_size": 8, "rows_per_device": 12, "max_rejected": 0.2},
      "pair": {"rule": "all_pairs"},
      "loss": {"name": loss},
      "train": {"steps": 2},
    },
  )
  assert run(settings, tmp_path / "run")
  first, *_, last = read_metrics(tmp_path / "run")
  assert first["rewards/ties"] == 1.0  # the policy is its own reference
  assert last["rewards/ties"] == 0.0
  if loss == "dpo":
    assert first["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
    assert f"makes {PAIRS} comparisons" in capsys.readouterr().out
  (row,) = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
  assert json.loads(row)["kind"] == "image file cannot be read"
