"""Writes trl_reward.json: ten steps of TRL 1.16's RewardTrainer.

  python tests/golden/make_trl_reward.py

On the model, the comparisons and the optimizer of oracles/trl-dpo.json in the
folder of real material, with a reward head drawn here. In the run "unk" the
tokenizer pads with <unk>; in "eos" with </s>, as it does by itself, and then
transformers takes a response's EOS for padding and reads the reward one token
before it.
"""

import json
import os
import pathlib
import tempfile
from typing import Any

import datasets
import torch
import transformers
import trl

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SHARED = pathlib.Path(os.environ.get("JAXPREF_SHARED", _ROOT / "../shared"))
_MODEL = _SHARED / "models" / "stories260K"
_ORACLE = json.loads((_SHARED / "oracles" / "trl-dpo.json").read_text())
_OUT = pathlib.Path(__file__).with_name("trl_reward.json")
_PAIRS, _STEPS = 8, 10
_KEPT = {
  "loss": "loss",
  "grad_norm": "grad_norm",
  "accuracy": "rewards/accuracies",
  "margin": "rewards/margins",
}


def main() -> None:
  torch.set_num_threads(1)
  datasets.disable_progress_bars()
  transformers.utils.logging.set_verbosity_error()
  generator = torch.Generator().manual_seed(0)
  head = torch.randn(1, 64, generator=generator) / 8
  told = {
    "source": f"trl {trl.__version__}, transformers "
    f"{transformers.__version__}, torch {torch.__version__}, float32, CPU",
    "head": [float(f"{x:.8g}") for x in head[0].tolist()],
    "unk": _train(head, "<unk>"),
    "eos": _train(head, "</s>"),
  }
  lines = [f'"{key}": {json.dumps(value)}' for key, value in told.items()]
  _OUT.write_text("{" + ",\n".join(lines) + "}\n")


def _train(head: torch.Tensor, pad_token: str) -> dict[str, list[float]]:
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    _MODEL, num_labels=1, dtype=torch.float32
  )
  with torch.no_grad():
    model.score.weight.copy_(head)
  rows = [
    {
      f"{side}_ids": tokens["prompt_ids"] + tokens[f"{side}_ids"]
      for side in ("chosen", "rejected")
    }
    for tokens in _ORACLE["tokens"]
  ]
  with tempfile.TemporaryDirectory() as folder:
    trainer = trl.RewardTrainer(
      model=model,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=transformers.AutoTokenizer.from_pretrained(_MODEL),
      args=trl.RewardConfig(
        output_dir=folder,
        max_steps=_STEPS,
        per_device_train_batch_size=_PAIRS,
        pad_token=pad_token,
        train_sampling_strategy="sequential",
        max_length=512,  # the longest has 299
        learning_rate=_ORACLE["optimizer"]["learning_rate"],
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
      ),
    )
    assert len(trainer.train_dataset) == len(rows)
    trainer.train()
  logs: list[dict[str, Any]] = [
    each for each in trainer.state.log_history if "loss" in each
  ]
  assert len(logs) == _STEPS
  return {
    ours: [float(f"{float(each[name]):.8g}") for each in logs]
    for name, ours in _KEPT.items()
  }


if __name__ == "__main__":
  main()
