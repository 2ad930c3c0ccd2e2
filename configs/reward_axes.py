"""A reward model with a reward on each axis that people rated.

A regression on HelpSteer2's five scores, Wang et al. 2024
(https://arxiv.org/abs/2406.08673). The loss starts at the mean square of the
scores, which go from 0 to 4, since the head starts at zero.

  python -m jaxpref.launch --config=configs/reward_axes.py \\
    --workdir=runs/reward_axes --config.model.path=FOLDER \\
    --config.data.path=FILE --config.data.eval_holdout=256

FOLDER is as for configs/reward.py; FILE holds HelpSteer2's rows, or others with
such scores: `--config.model.reward_axes="('helpfulness','honesty')"` names
those of UltraFeedback. `eval/rewards/errors/AXIS` is the mean distance from the
scores, and `eval/rewards/accuracies/AXIS` the share of pairs of answers which
are in the right order on that axis. To learn the order alone, set
`config.loss.name=bradley_terry`; to learn of ties too,
`bradley_terry_ties_axes` with `config.pair.ties=keep`. The classifier in
`runs/reward_axes/export` has an output an axis, named by its `id2label`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  axes = "helpfulness", "correctness", "coherence", "complexity", "verbosity"
  config.model = {"reward_axes": axes}
  config.loss = {"name": "reward_mse_axes"}
  config.optimizer = {"learning_rate": 1e-5, "schedule": "linear"}
  config.data = {"max_length": 1024, "batch_size": 64}
  return config
