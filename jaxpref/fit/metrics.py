"""Where the numbers of a run go: metrics.jsonl, TensorBoard, a progress bar."""

from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any

import jax
from tqdm import tqdm

from jaxpref.files import replacing


def averages(terms: Mapping[str, Any]) -> dict[str, float]:
  """total / count of each Term, fetched from the devices."""
  fetched = jax.device_get(dict(terms))
  values = {
    name: float(total) / float(count)
    for name, (total, count) in fetched.items()
    if count > 0
  }
  sides = {"rewards/chosen", "rewards/rejected"}
  if sides <= values.keys() and "rewards/margins" not in values:
    # Responses without pairs: what lies between the averages of both kinds.
    margin = values["rewards/chosen"] - values["rewards/rejected"]
    values["rewards/margins"] = margin
  return values


class RunLog:
  """Writes one line a logged step; only process 0 writes.

  A resumed run cuts its files back to the step it resumes from, so that every
  step stands in metrics.jsonl once.
  """

  def __init__(self, workdir: pathlib.Path, *, start: int, stop: int):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    from tensorboardX import SummaryWriter  # imports torch, where there is one

    path = workdir / "metrics.jsonl"
    _cut_back(path, start)
    self._file = path.open("a", encoding="utf-8")
    self._events = SummaryWriter(
      str(workdir / "tensorboard"), purge_step=start + 1
    )
    self._bar = tqdm(
      total=stop, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a step's numbers, safe from a kill once this returns."""
    if not self._active:
      return
    line: dict[str, float | None] = {"step": step}
    # JSON has no nan or inf; null is what readers expect.
    for name, value in values.items():
      line[name] = value if math.isfinite(value) else None
      self._events.add_scalar(name, value, step)
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()

  def progress(self, step: int, values: Mapping[str, float]) -> None:
    """Moves the bar to `step` and shows what people look at."""
    if not self._active:
      return
    pairs = "pairs" if values.get("pairs_per_second") else "tokens"
    shown = {
      "loss": "loss",
      "rewards/accuracies": "accuracy",
      f"{pairs}_per_second": f"{pairs}/s",
    }
    texts = {
      short: f"{values[name]:.4g}"
      for name, short in shown.items()
      if name in values
    }
    self._bar.set_postfix(texts, refresh=False)
    self._bar.update(step - self._bar.n)

  def close(self) -> None:
    if self._active:
      os.fsync(self._file.fileno())
      self._file.close()
      self._events.close()
      self._bar.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; a torn last line is left out."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return []
  lines = []
  for text in path.read_text(encoding="utf-8").splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break  # killed while writing
  return lines


def _cut_back(path: pathlib.Path, step: int) -> None:
  # A run that begins anew also writes anew what stood before step 1.
  lines = read_metrics(path.parent) if step else []
  kept = [each for each in lines if each["step"] <= step]
  with replacing(path) as partial:
    partial.write_text("".join(json.dumps(each) + "\n" for each in kept))
