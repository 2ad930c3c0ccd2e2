"""A first run that needs no download: about three minutes on two cores.

  python -m jaxpref.launch --config=configs/quickstart.py \\
    --workdir=runs/quickstart

The data are simulated: a small grammar writes simple stories that end well or
badly. A small Llama learns the stories from random weights (in
WORKDIR/base), with as many good endings as bad ones. Then DPO (Rafailov et al.
2023, https://arxiv.org/abs/2305.18290) shows it comparisons that prefer the
good endings. On prompts held out from training, the preferred ending is the
likelier one in about half of the comparisons before and in nearly all after,
and nearly all sampled endings are good ones. WORKDIR/report.html shows both.
"""

import dataclasses
import pathlib

import ml_collections

from jaxpref import config as settings
from jaxpref.data import simulated
from jaxpref.hosts import say
from jaxpref.run import run


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.loss = {"name": "dpo", "beta": 0.2}
  config.optimizer = {"learning_rate": 1e-4, "schedule": "linear"}
  config.data = {
    "batch_size": 16,
    "max_length": 128,
    "eval_holdout": 256,
    "epochs": 1,
  }
  config.train = {"eval_every": 20}
  config.sample = {"num_prompts": 128, "max_new_tokens": 40, "temperature": 0.7}
  config.score = {"pattern": simulated.PREFERRED_ENDING}
  return config


def make_inputs(
  config: settings.Config, workdir: pathlib.Path
) -> settings.Config | None:
  """Writes the stories and trains the base model, each once.

  Returns: the config with the paths of both; None if interrupted.
  """
  corpus = simulated.write_corpus(
    workdir / "corpus", num_stories=6000, num_comparisons=2304, seed=0
  )
  base = settings.build(
    {
      "loss": {"name": "sft"},
      "model": {
        "tokenizer": str(corpus / "tokenizer"),
        "arch": {
          "hidden_size": 128,
          "num_hidden_layers": 3,
          "num_attention_heads": 4,
          "num_key_value_heads": 2,
          "head_dim": 32,
          "tie_word_embeddings": True,
        },
        "remat": "",
      },
      "data": {
        "path": str(corpus / "stories.jsonl"),
        "eval_holdout": 64,
        "batch_size": 32,
        "max_length": 128,
        "epochs": 3,
      },
      "optimizer": {
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 20,
      },
      "sample": {"num_prompts": 8, "max_new_tokens": 80},
    }
  )
  say("Teaching a small Llama the simulated stories, from random weights.")
  if not run(base, workdir / "base"):
    return None
  say("Changing which endings it prefers.")
  return dataclasses.replace(
    config,
    model=dataclasses.replace(
      config.model, path=str(workdir / "base" / "export"), remat=""
    ),
    data=dataclasses.replace(
      config.data, path=str(corpus / "comparisons.jsonl")
    ),
  )
