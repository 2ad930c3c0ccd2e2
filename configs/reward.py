"""A reward model of your comparisons.

Bradley-Terry's likelihood of the comparisons, Ouyang et al. 2022
(https://arxiv.org/abs/2203.02155). The loss starts at ln 2 = 0.6931.

  python -m jaxpref.launch --config=configs/reward.py --workdir=runs/reward \\
    --config.model.path=FOLDER --config.data.path=FILE \\
    --config.data.eval_holdout=256

FOLDER is a Hugging Face folder of a Llama, or of a reward model to go on from;
FILE holds comparisons, as for configs/dpo.py. The model's head gives way to a
new one, which reads one number off the last token of a response.
`rewards/accuracies` is the share of comparisons where the chosen response gets
the larger reward; with held-out data `eval/rewards/accuracies` is the number to
look at. `runs/reward/export` is a folder that transformers'
AutoModelForSequenceClassification loads. A small `config.loss.center` (0.01)
keeps rewards around zero.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.loss = {"name": "bradley_terry"}
  config.optimizer = {"learning_rate": 1e-5, "schedule": "linear"}
  config.data = {"max_length": 1024, "batch_size": 64}
  return config
