"""Diffusion-DPO of SDXL: pairs of images, of which people liked one better.

Wallace et al. 2023 (https://arxiv.org/abs/2311.12908): the trained UNet must
denoise the preferred image better than a frozen copy of itself does, and by
more than the other image. The two share their timestep and their noise, and a
fifth of the draws leave out the prompt, as in the authors' code.

  python -m jaxpref.launch --config=configs/diffusion_dpo_sdxl.py \\
    --workdir=runs/diffusion_dpo --config.model.path=FOLDER \\
    --config.data.path=FILES --config.sample.prompts=PROMPTS

FOLDER is SDXL as diffusers saves it; FILES hold Pick-a-Pic's columns (caption,
jpg_0, jpg_1, label_0, label_1) or another format of images that README.md
lists. Images and captions are encoded once, before training, or as it goes by
--config.data.encode=during; ties are left out. The authors' code mirrors half
of the images it draws, each by itself: --config.data.flip=0.5 mirrors both of a
pair, or none. It also cuts a square out of every image;
--config.data.aspect_buckets=9 keeps more of those that are tall or wide. The
loss begins at ln 2 = 0.6931 and hardly falls: what to look at are
`rewards/accuracies` and the images of runs/diffusion_dpo/samples, which are of
the same noise before and after.

The paper trains 2,000 steps of 2,048 pairs and reports that 70 % of people
prefer the result to SDXL on PartiPrompts. Its learning rate of (2000 / beta)
2.048e-8 is a thousandth of what its code comes to, 2.048e-5 for these pairs;
this is the code's. The code trains with Adafactor, and this with AdamW. A
LoRA of a few attention layers, as of diffusers' script, takes

    --config.model.lora.rank=8 --config.model.lora.alpha=8 \\
    --config.optimizer.learning_rate=1e-5

Memory and time of a step on hardware that need not be there:

    --plan=v5p:2x2x2 --config.model.arch.preset=sdxl-base
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl"}
  config.loss = {"name": "dpo", "beta": 5000.0}
  config.diffusion = {"drop_caption": 0.2}
  config.data = {"resolution": 1024, "batch_size": 2048, "rows_per_device": 2}
  config.optimizer = {
    "learning_rate": 2.048e-5,
    "schedule": "constant",
    "warmup_steps": 200,
    "weight_decay": 0.01,
  }
  config.train = {"steps": 2000, "checkpoint_every": 200}
  config.sample = {"steps": 50, "guidance": 5.0}
  return config
