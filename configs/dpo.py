"""DPO on your own model and comparisons.

Direct preference optimization, Rafailov et al. 2023
(https://arxiv.org/abs/2305.18290). The loss starts at ln 2 = 0.6931.

  python -m jaxpref.launch --config=configs/dpo.py --workdir=runs/dpo \\
    --config.model.path=FOLDER --config.data.path=FILE \\
    --config.data.eval_holdout=256

FOLDER is a Hugging Face folder of a Llama (config.json, safetensors,
tokenizer); FILE is .jsonl, .jsonl.gz or .parquet with `prompt`, `chosen` and
`rejected` as text or chat messages, or with `chosen` and `rejected` alone.
`runs/dpo` then holds metrics, checkpoints, samples, a report page and
`export`, a folder that transformers loads. Every key of jaxpref/config.py can
be overridden in the same way.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.loss = {"name": "dpo", "beta": 0.1}
  config.optimizer = {"learning_rate": 1e-6, "schedule": "linear"}
  config.data = {"max_length": 1024, "batch_size": 64}
  return config
