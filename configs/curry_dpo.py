"""Curry-DPO: several comparisons of a prompt, from easy to hard.

Pattnaik et al. 2024 (https://arxiv.org/abs/2403.07230). Of four rated answers
the best is compared with the worst, then with the second worst, then with the
second best: three stages, each a run of its own with a new optimizer, whose
reference is what the stage before has trained.

  python -m jaxpref.launch --config=configs/curry_dpo.py \\
    --workdir=runs/curry --config.model.path=FOLDER \\
    --config.data.path=FILE --config.data.eval_holdout=256

FILE holds UltraFeedback's rows, or others with four rated answers; FOLDER is a
model tuned on instructions, as the paper's zephyr-7b-sft. Each stage begins
with a loss of ln 2 = 0.6931 in a folder of its own: `runs/curry/stage_000`,
`stage_001` and `stage_002`, whose `export` is the result. The paper has
MT-bench 7.43 for Zephyr-7B, and up to 7.5 points more wins than DPO. Learning
rate and batch size are those that others report of it.

`--config.data.curriculum.refresh=False` keeps the first reference, and
`--config.data.curriculum.per_prompt=False` cuts all comparisons by how far
apart their scores are, instead of each prompt's.
`--config.data.curriculum.criterion=logp_gap` takes the log-probs of FOLDER in
place of the scores.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.pair = {"rule": "best_rest"}
  config.data = {
    "curriculum": {"criterion": "score_gap", "stages": 3, "per_prompt": True},
    "batch_size": 32,
  }
  config.loss = {"name": "dpo", "beta": 0.1}
  config.optimizer = {"learning_rate": 5e-7, "schedule": "linear"}
  return config
