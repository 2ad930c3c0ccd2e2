"""Writes trl_runs.json: ten steps of TRL's trainers, one run a loss.

  pip install -e '.[bench]'
  JAXPREF_SHARED=FOLDER python tests/golden/make_trl_runs.py [NAME ...]

The folder holds models/stories260K and oracles/trl-dpo.json, whose 80
comparisons are the data and whose token ids every trainer must come to by
itself. With names, only these runs are made anew. Before any, plain DPO is run
and must give the curve of that file: the settings are then the same.

What is TRL's stays TRL's but for one run, `orpo` (see `_CompletionORPO`).
"""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

os.environ |= {
  "CUDA_VISIBLE_DEVICES": "",
  "HF_HUB_OFFLINE": "1",
  "TQDM_DISABLE": "1",
  "TRL_EXPERIMENTAL_SILENCE": "1",
}

import datasets
import numpy as np
import torch
import transformers
from transformers.trainer_callback import PrinterCallback
import trl
from trl.experimental import cpo, orpo

_HERE = pathlib.Path(__file__).resolve()
_SHARED = pathlib.Path(
  os.environ.get("JAXPREF_SHARED", _HERE.parents[3] / "shared")
)
_MODEL = _SHARED / "models" / "stories260K"
_ORACLE = json.loads((_SHARED / "oracles" / "trl-dpo.json").read_text())
_OUT = _HERE.with_name("trl_runs.json")
_RATE = _ORACLE["optimizer"]["learning_rate"]
_STEPS, _PAIRS = 10, 8  # pairs a step: 16 rows where the data is unpaired


class _CompletionORPO(orpo.ORPOTrainer):
  """ORPO with the likelihood term over the completion alone.

  TRL takes it over prompt and completion. The run `orpo_with_prompt` has that.
  """

  def concatenated_forward(self, model, batch):
    *others, chosen_logits, rejected_logits, _ = super().concatenated_forward(
      model, batch
    )
    labels = batch["chosen_labels"][:, 1:]  # -100 on prompt and padding
    logits = chosen_logits[:, : labels.shape[1]]
    nll = torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), labels.flatten()
    )
    return *others, chosen_logits, rejected_logits, nll


_TRAINERS = {
  "DPOTrainer": (trl.DPOTrainer, trl.DPOConfig),
  "KTOTrainer": (trl.KTOTrainer, trl.KTOConfig),
  "CPOTrainer": (cpo.CPOTrainer, cpo.CPOConfig),
  "ORPOTrainer": (orpo.ORPOTrainer, orpo.ORPOConfig),
  "ORPOTrainer, NLL of the completion": (_CompletionORPO, orpo.ORPOConfig),
}


@dataclasses.dataclass(frozen=True)
class _Run:
  """A trainer under arguments of its own, and our loss that must agree."""

  name: str
  trainer: str
  arguments: dict[str, Any]
  loss: dict[str, Any] | None  # our config.loss; None: we have none on purpose
  data: str = "pairs"  # how comparisons become rows, see `_rows`


def _dpo(name: str, kinds: str, loss: Any = None, **arguments: Any) -> _Run:
  given = {"loss_type": kinds.split(), "beta": 0.1, **arguments}
  ours = {"name": name, "beta": 0.1, **(loss or {})}
  return _Run(name, "DPOTrainer", given, ours)


def _kto(name: str, data: str, kind: str) -> _Run:
  given = {"loss_type": kind, "beta": 0.1}
  return _Run(name, "KTOTrainer", given, {"name": kind, "beta": 0.1}, data)


def _simpo(name: str, weight: float) -> _Run:
  given = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}
  ours = {"name": "simpo", "beta": 2.0, "gamma": 0.5}
  given, ours = given | {"cpo_alpha": weight}, ours | {"nll_weight": weight}
  return _Run(name, "CPOTrainer", given, ours)


def _same(**options: float) -> dict[str, Any]:
  """Options that TRL and we call the same, for both."""
  return {"loss": options, **options}


_RUNS = [
  _dpo("ipo", "ipo"),
  _dpo("hinge", "hinge"),
  _dpo("robust_dpo", "robust", **_same(label_smoothing=0.1)),
  _dpo("apo_zero", "apo_zero"),
  _dpo("apo_down", "apo_down"),
  _dpo("sppo_hard", "sppo_hard"),
  _dpo("nca", "nca_pair"),
  _dpo("exo", "exo_pair", **_same(label_smoothing=1e-3)),
  _dpo("discopop", "discopop", {"tau": 0.05}, discopop_tau=0.05),
  _dpo("aot", "aot"),
  # At 1e-4 the reference alone settles the order, and AOT is plain DPO.
  _dpo("aot_fast", "aot", {"name": "aot"}, learning_rate=1e-3),
  _dpo("aot_unpaired", "aot_unpaired"),
  _dpo("bco_pair", "bco_pair"),
  # TRL 1.16 ignores the smoothing of `sigmoid`.
  _dpo("dpo_unsmoothed", "sigmoid", {"name": "dpo"}, label_smoothing=0.1),
  # TRL 0.19 had L = (1 - s) A + s B, A = -log sigmoid(x), B = -log sigmoid(-x).
  # Of what 1.16 has, `robust` is R = ((1 - s) A - s B) / (1 - 2 s), and so
  # L = 2 (1 - s) A - (1 - 2 s) R.
  _dpo(
    "dpo_smoothed",
    "sigmoid robust",
    {"name": "dpo", "label_smoothing": 0.1},
    label_smoothing=0.1,
    loss_weights=[1.8, -0.8],
  ),
  _kto("kto", "halves", "kto"),
  # Half of its prompts get an answer to themselves as one to another.
  dataclasses.replace(_kto("kto_adjacent", "interleaved", "kto"), loss=None),
  _kto("apo_zero_unpaired", "interleaved", "apo_zero_unpaired"),
  _simpo("simpo", 0.0),
  _simpo("simpo_with_nll", 1.0),  # the default of CPOTrainer
  _Run(
    "cpo",
    "CPOTrainer",
    {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
    {"name": "cpo", "beta": 0.1},
  ),
  _Run(
    "orpo",
    "ORPOTrainer, NLL of the completion",
    {"beta": 0.1},
    {"name": "orpo", "beta": 0.1},
  ),
  _Run("orpo_with_prompt", "ORPOTrainer", {"beta": 0.1}, None),
]


def main() -> None:
  torch.set_num_threads(1)
  transformers.utils.logging.set_verbosity_error()
  datasets.disable_progress_bars()
  _check_settings()
  names = sys.argv[1:] or [run.name for run in _RUNS]
  made = {}
  for run in _RUNS:
    if run.name in names:
      start = time.perf_counter()
      made[run.name] = {**dataclasses.asdict(run), "curve": _train(run)}
      print(f"{run.name}: {time.perf_counter() - start:.1f} s", flush=True)
  if _OUT.exists():
    old = {run["name"]: run for run in json.loads(_OUT.read_text())["runs"]}
    made = {**old, **made}
  lines = [json.dumps(made[run.name]) for run in _RUNS if run.name in made]
  head = json.dumps(_head(), indent=1)[:-2]  # without its closing brace
  _OUT.write_text(f'{head},\n "runs": [\n' + ",\n".join(lines) + "\n]}\n")


def _head() -> dict[str, Any]:
  return {
    "source": f"trl {trl.__version__}, transformers "
    f"{transformers.__version__}, torch {torch.__version__}, float32, CPU",
    "model": "models/stories260K",
    "rows": "those of oracles/trl-dpo.json, in order; see `data` of a run",
    "steps": _STEPS,
    "optimizer": _ORACLE["optimizer"],
    "data": {
      "pairs": f"{_PAIRS} comparisons a step",
      "interleaved": f"{2 * _PAIRS} rows of prompt, completion and label a "
      "step: chosen and rejected of the first comparison, of the second ...",
      "halves": f"{2 * _PAIRS} rows a step: the chosen ones of {_PAIRS} "
      "comparisons, then their rejected ones",
    },
    "kl": "of each batch's rows 0 ... n-1, prompt i with completion i-1, "
    "prompt 0 with completion n-1; the mean of n, at least 0",
  }


def _check_settings() -> None:
  curve = _train(_dpo("dpo", "sigmoid"))
  for name in ("loss", "grad_norm", "logps/chosen", "rewards/margins"):
    expected = [step[name] for step in _ORACLE["curve"]]
    np.testing.assert_allclose(
      curve[name], expected, rtol=1e-4, atol=1e-5, err_msg=name
    )


def _train(run: _Run) -> dict[str, list[float]]:
  """Trains, and returns what was logged: for each quantity its ten values."""
  kind, arguments = _TRAINERS[run.trainer]
  rows = _rows(run.data)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    _MODEL, dtype=torch.float32
  )
  with tempfile.TemporaryDirectory() as folder:
    trainer = kind(
      model=model,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=transformers.AutoTokenizer.from_pretrained(_MODEL),
      args=arguments(
        output_dir=folder,
        max_steps=_STEPS,
        per_device_train_batch_size=len(rows) // _STEPS,
        train_sampling_strategy="sequential",
        max_length=512,  # the longest has 299
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1e9,  # reported, and never clipped
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **{"learning_rate": _RATE, **run.arguments},
      ),
    )
    trainer.remove_callback(PrinterCallback)
    _check_tokens(trainer.train_dataset, run.data)
    trainer.train()
  logs = [each for each in trainer.state.log_history if "loss" in each]
  assert len(logs) == _STEPS
  rate = run.arguments.get("learning_rate", _RATE)
  assert all(each["learning_rate"] == rate for each in logs)
  kept = ("loss", "grad_norm", "kl", "nll_loss", "log_odds_chosen",
          "log_odds_ratio")  # fmt: skip
  return {
    name: [float(f"{each[name]:.8g}") for each in logs]
    for name in logs[0]
    if name in kept or name.startswith(("logps/", "rewards/"))
  }


def _rows(data: str) -> list[dict[str, Any]]:
  comparisons = _ORACLE["rows"][: _STEPS * _PAIRS]
  if data == "pairs":
    return comparisons
  order = _order(data)
  return [
    {
      "prompt": comparisons[i]["prompt"],
      "completion": comparisons[i][side],
      "label": side == "chosen",
    }
    for i, side in order
  ]


def _order(data: str) -> list[tuple[int, str]]:
  """Of unpaired rows: which comparison, and which of its sides."""
  sides = ("chosen", "rejected")
  if data == "interleaved":
    return [(i, side) for i in range(_STEPS * _PAIRS) for side in sides]
  return [
    (step * _PAIRS + i, side)
    for step in range(_STEPS)
    for side in sides
    for i in range(_PAIRS)
  ]


def _check_tokens(dataset: datasets.Dataset, data: str) -> None:
  """The token ids are the oracle's: BOS and EOS once, nothing cut."""
  told = _ORACLE["tokens"]
  if data == "pairs":
    for row, tokens in zip(dataset, told, strict=True):
      for side in ("chosen", "rejected"):
        whole = tokens["prompt_ids"] + tokens[f"{side}_ids"]
        if "prompt_ids" in row:  # of DPOTrainer
          assert row["prompt_ids"] + row[f"{side}_ids"] == whole
          assert row["prompt_ids"] == tokens["prompt_ids"]
        else:  # of CPOTrainer and ORPOTrainer
          assert row[f"{side}_input_ids"] == whole
          masked = [-100] * len(tokens["prompt_ids"])
          assert row[f"{side}_labels"] == masked + tokens[f"{side}_ids"]
    return
  order = _order(data)
  ids = [told[i][f"{side}_ids"] for i, side in order]
  batch = 2 * _PAIRS
  for n, (row, (i, side)) in enumerate(zip(dataset, order, strict=True)):
    assert row["prompt_ids"] == told[i]["prompt_ids"]
    assert row["completion_ids"] == ids[n]
    assert row["label"] == (side == "chosen")
    if "KL_completion_ids" in row:
      start = n - n % batch
      assert row["KL_completion_ids"] == ids[start + (n - 1) % batch]


if __name__ == "__main__":
  main()
