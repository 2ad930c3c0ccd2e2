"""Supervised fine-tuning: the model learns to write the answers of the data.

  python -m jaxpref.launch --config=configs/sft.py --workdir=runs/sft \\
    --config.model.path=FOLDER --config.data.path=FILE \\
    --config.data.eval_holdout=256

The loss is the negative log-likelihood of a response's token, in nats, averaged
over all response tokens of a step; prompts are read and not learned. FILE has
rows with `prompt` and `completion` as text or chat messages, or `text` alone.
Of comparisons, the chosen answers are learned: the usual first stage of
preference training (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.loss = {"name": "sft"}
  config.optimizer = {"learning_rate": 1e-5, "schedule": "cosine"}
  config.data = {"max_length": 1024, "batch_size": 64}
  return config
