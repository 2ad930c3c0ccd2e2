"""Llama-3.1-8B, all weights, by DPO on 64 TPU v5e chips.

Two rows of 2,048 tokens a chip and micro-batch, parameters and optimizer
spread over all chips, the reference's log-probs cached. Look first:

  python -m jaxpref.launch --config=configs/llama31_8b_dpo.py \\
    --workdir=runs/8b_plan --plan=v5e:8x8

needs no TPU, and says what a step takes of each chip; benchmarks/RESULTS.md has
what it said. Then train, on each host as launch/README.md shows:

  python -m jaxpref.launch --config=configs/llama31_8b_dpo.py \\
    --workdir=DIR --config.data.path=FILE \\
    --config.model.path=FOLDER --config.model.arch='{}'

FOLDER holds Llama-3.1-8B as Hugging Face has it. The learning rate and beta
are those of Zephyr (https://arxiv.org/abs/2310.16944) and Tülu 2
(https://arxiv.org/abs/2311.10702).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"arch": {"preset": "llama-3.1-8b"}}
  config.reference = {"mode": "cached"}
  config.loss = {"name": "dpo", "beta": 0.1}
  config.optimizer = {
    "learning_rate": 5e-7, "schedule": "linear", "warmup_steps": 50
  }  # fmt: skip
  config.data = {
    "max_length": 2048,
    "row_length": 2048,
    "rows_per_device": 2,
    "batch_size": 64,
  }
  return config
