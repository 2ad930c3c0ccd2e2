"""RankDPO of SDXL: several ranked images of each prompt.

Karthik et al. 2024 (https://arxiv.org/abs/2410.18013): Diffusion-DPO over all
pairs of a prompt's images, each weighted by how far apart the two are in
gain and in rank. The images of a prompt share their timestep, not their noise.

  python -m jaxpref.launch --config=configs/rank_dpo_sdxl.py \\
    --workdir=runs/rank_dpo --config.model.path=FOLDER \\
    --config.data.path=FILES --config.sample.prompts=PROMPTS

FOLDER as in configs/diffusion_dpo_sdxl.py. FILES hold lists of images with
`scores` between 0 and 1, the share of votes that an image won, or another
format of ranked images that README.md lists.

The paper trains 400 steps of 1,024 prompts with four images each, of four
models, ranked by five reward models, and reports GenEval 0.55 to 0.61 for SDXL.
It states neither beta nor the learning rate: these are those of Diffusion-DPO,
in whose units the loss is. Its equation sums squared errors and its noise is
drawn for each image; `--config.diffusion.share_noise=True` shares that as well.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl"}
  config.loss = {"name": "rank_dpo", "beta": 5000.0}
  config.diffusion = {"share_noise": False}
  config.data = {"resolution": 1024, "batch_size": 1024, "rows_per_device": 4}
  config.optimizer = {
    "learning_rate": 2.048e-5,
    "schedule": "constant",
    "weight_decay": 0.01,
  }
  config.train = {"steps": 400, "checkpoint_every": 100}
  config.sample = {"steps": 50, "guidance": 5.0}
  return config
