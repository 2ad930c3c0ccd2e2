"""Which curves a report shows."""

from collections.abc import Sequence
import itertools
import math
from typing import Any

from jaxpref.report.charts import Chart, Line
from jaxpref.report.read import Row, series, starts_tied

_SEEN = "examples/"

_Charts = dict[str, tuple[dict[str, tuple[str, str]], dict[str, Any]]]

# By title: the measures with their names and colours, and Chart's options.
_CHARTS: _Charts = {
  "Loss": ({"loss": ("train", "blue"), "eval/loss": ("held-out", "green")}, {}),
  "Accuracy": ({
    "rewards/accuracies": ("reward, train", "blue"),
    "eval/rewards/accuracies": ("reward, held-out", "blue"),
    "logps/accuracies": ("likelier, train", "orange"),
    "eval/logps/accuracies": ("likelier, held-out", "orange"),
  }, {"percent": True, "help": "comparisons where the preferred answer has the "
      "larger implicit reward, and where it is the likelier one"}),
  "Reward margin": ({
    "rewards/margins": ("train", "blue"),
    "eval/rewards/margins": ("held-out", "green"),
  }, {"zero": True, "help": "reward of the chosen answer minus that of the "
      "rejected one"}),
  "Reward margin by noise": ({
    "rewards/margins/noise_1": ("least", "blue"),
    "rewards/margins/noise_2": ("less", "green"),
    "rewards/margins/noise_3": ("more", "orange"),
    "rewards/margins/noise_4": ("most", "violet"),
  }, {"zero": True, "help": "by the quarter of the model's timesteps that was "
      "drawn"}),
  "Rewards": ({
    "rewards/chosen": ("chosen", "blue"),
    "rewards/rejected": ("rejected", "orange"),
  }, {"zero": True, "help": "of a reward model; else β times the "
      "log-probability, less the reference's where the loss has one"}),
  "Rating of sampled images": ({
    "reward/chosen": ("better of two", "blue"),
    "eval/reward/chosen": ("held-out", "blue"),
    "reward/rejected": ("other", "orange"),
    "eval/reward/rejected": ("held-out", "orange"),
  }, {"help": "by config.score, of the images that the model draws in "
      "training"}),
  "Ratios beyond the clip": ({
    "ratios/clipped": ("train", "blue"),
    "eval/ratios/clipped": ("held-out", "green"),
  }, {"zero": True, "percent": True, "help": "sampling steps that have become "
      "so much likelier, or less likely, that they have no gradient"}),
  "Log-probability of answers": ({
    "logps/chosen": ("chosen", "blue"),
    "eval/logps/chosen": ("held-out", "blue"),
    "logps/rejected": ("rejected", "orange"),
    "eval/logps/rejected": ("held-out", "orange"),
  }, {"help": "nats, summed over the answer"}),
  "Denoising error": ({
    "error/chosen": ("chosen", "blue"),
    "eval/error/chosen": ("held-out", "blue"),
    "error/rejected": ("rejected", "orange"),
    "eval/error/rejected": ("held-out", "orange"),
  }, {"zero": True, "help": "mean squared error of what the model predicts of "
      "noisy latents; moves with the timesteps drawn"}),
  "Likelihood term": ({"nll": ("train", "blue"),
                       "eval/nll": ("held-out", "green")},
    {"help": "nats a token of chosen answers; the loss adds it, weighted"}),
  "KL estimate": ({"kl": ("train", "blue"), "eval/kl": ("held-out", "green")},
    {"zero": True, "help": "nats; how far the policy is from the reference on "
     "answers to other prompts"}),
  "Gradient norm": ({"grad_norm": ("before clipping", "blue")}, {"zero": True}),
  "Learning rate": ({"learning_rate": ("schedule", "violet")}, {"zero": True}),
  "Speed": ({
    "pairs_per_second": ("pairs a second", "green"),
    "tokens_per_second": ("tokens a second", "green"),
    "images_per_second": ("images a second", "blue"),
  }, {"zero": True}),
  "Useful TFLOP/s": ({
    "useful_tflops_per_second_per_device": ("of a device", "green"),
  }, {"zero": True, "help": "without padding, repeated prompts and what is "
      "computed again to save memory"}),
  "Use of the peak": ({"mfu": ("useful MFU", "green")},
    {"zero": True, "percent": True, "help": "of the chip's peak in bfloat16"}),
  "Waiting for data": ({"data/wait_share": ("of the time", "orange")},
    {"zero": True, "percent": True, "help": "the loop waits for batches that "
     "are not made yet; the devices, no longer than that"}),
  "Wasted tokens": ({
    "waste/padding": ("padding", "blue"),
    "waste/idle_rows": ("empty rows", "orange"),
    "waste/repeated_prompts": ("repeated prompts", "violet"),
  }, {"zero": True, "percent": True, "help": "of all tokens computed"}),
}  # fmt: skip


def curves(rows: Sequence[Row], loss: str) -> list[Chart]:
  """The charts of a run that have something to show.

  Args:
    rows: the lines of metrics.jsonl.
    loss: config.loss.name.
  """
  charts = []
  for title, (measures, options) in (_CHARTS | _sources(rows)).items():
    lines = [
      Line(*look, points, key.startswith("eval/"), key != "learning_rate")
      for key, look in measures.items()
      if (points := _points(rows, key))
    ]
    if title == "Loss" and loss == "dpo":
      options = {"level": ("ln 2: policy = reference", math.log(2))}
    if title == "Speed":
      lines = lines[:1]  # of tokens only where there are no pairs
    if lines:
      charts.append(Chart(title, lines, **options))
  return charts


def _sources(rows: Sequence[Row]) -> _Charts:
  """A chart of the examples that were seen of each source of a mixture."""
  names = sorted({key for row in rows for key in row if key.startswith(_SEEN)})
  colors = itertools.cycle(("blue", "orange", "green", "violet"))
  looks = {
    key: (key.removeprefix(_SEEN), color)
    for key, color in zip(names, colors, strict=False)
  }
  return {"Examples seen": (looks, {"zero": True, "help": "of each source"})}


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
  points = series(rows, key)
  if key == "eval/rewards/accuracies" and starts_tied(rows):
    return [point for point in points if point[0] > 0]
  if key.endswith("per_second") and not any(value for _, value in points):
    return []  # of pairs, in a run without comparisons
  return points
