"""MaPO of SDXL: preferences among images without a reference.

Hong, Paul et al. 2024 (https://arxiv.org/abs/2406.06424): the error of the
preferred image, as in plain fine-tuning, and a margin between bounded scores of
the two. One UNet is in memory instead of two.

  python -m jaxpref.launch --config=configs/mapo_sdxl.py \\
    --workdir=runs/mapo --config.model.path=FOLDER \\
    --config.data.path=FILES --config.sample.prompts=PROMPTS

FOLDER and FILES as in configs/diffusion_dpo_sdxl.py. The loss is that of the
released code, with the learning rate and the batch of its demonstration on one
GPU; near a tie its margin pulls twelve times as hard as its denoising term.
The later paper has other constants,

    --config.loss.name=mapo_paper --config.optimizer.learning_rate=1e-7 \
    --config.optimizer.schedule=cosine --config.data.batch_size=2048

and a pull of the margin a quarter of that of the denoising term. Prompts are
never left out. To look at: `error/chosen` below `error/rejected`, and the
images of runs/mapo/samples.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl"}
  config.loss = {"name": "mapo"}
  config.data = {"resolution": 1024, "batch_size": 16, "rows_per_device": 2}
  config.optimizer = {
    "learning_rate": 1e-5,
    "schedule": "constant",
    "weight_decay": 0.01,
  }
  config.train = {"steps": 2000, "checkpoint_every": 200}
  config.sample = {"steps": 30, "guidance": 5.0}
  return config
