"""SmPO of SDXL: pairs as sure as a reward model is, and the model's own noise.

Lu et al. 2025 (https://arxiv.org/abs/2506.02698): Diffusion-DPO where a pair
counts by how far apart a reward model scores its images, and where the noise of
an image is not random but what a few steps of DDIM inversion by the model that
trains lead to, each step asked twice (ReNoise).

  python -m jaxpref.launch --config=configs/smpo_sdxl.py \\
    --workdir=runs/smpo --config.model.path=FOLDER \\
    --config.data.path=FILES --config.sample.prompts=PROMPTS

FOLDER as in configs/diffusion_dpo_sdxl.py. FILES hold `prompt`, `chosen`,
`rejected`, `score_chosen` and `score_rejected`, or another format of images
with scores that README.md lists; the authors score Pick-a-Pic v2 by PickScore,
whose range `loss.score_range` is: set it to that of your own scores. The image
that is scored higher is the better one, whatever people said.

The constants are those of the authors' code: 200 steps of 1,024 pairs, a beta
of 5000 with a gamma of 10, ten steps of inversion, a fifth of the captions left
out. For Stable Diffusion 1.5 it takes `--config.loss.beta=2000` and
`--config.diffusion.inversion_steps=5`. It trains with Adafactor, and this with
AdamW. It begins the first step of inversion at a negative timestep and inverts
past the timestep that it then tells the model, and so does this; but its
inversion of a batch stops at the timestep of the first pair, and this at each
pair's own. The paper reports a median PickScore of 23.62 on the prompts of
HPD v2, of 23.13 for Diffusion-DPO and of 22.75 for SDXL.

The inversion calls the model about 13 times a pair of images beside the two
calls of Diffusion-DPO.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl"}
  config.loss = {"name": "smpo", "beta": 5000.0, "gamma": 10.0}
  config.diffusion = {"drop_caption": 0.2, "inversion_steps": 10}
  config.data = {"resolution": 1024, "batch_size": 1024, "rows_per_device": 2}
  config.optimizer = {
    "learning_rate": 1.024e-5,
    "schedule": "constant",
    "warmup_steps": 100,
    "weight_decay": 0.01,
  }
  config.train = {"steps": 200, "checkpoint_every": 50}
  config.sample = {"steps": 50, "guidance": 5.0}
  return config
