"""PSO of SDXL-Turbo, online: it learns from pairs of its own 4-step images.

Miao et al. 2024 (https://arxiv.org/abs/2410.03190): in each step the model
draws two images of every caption, a rater says which is better, and each noisy
step of the sampler becomes likelier on the better image's way and less likely
on the other's, beside the model before training. A step whose likelihood has
changed by a tenth has no gradient any more.

  python -m jaxpref.launch --config=configs/pso_sdxl.py \\
    --workdir=runs/pso --config.model.path=FOLDER \\
    --config.data.path=PROMPTS --config.sample.prompts=SHOWN \\
    --config.score.models.pickscore=PICKSCORE

FOLDER is SDXL-Turbo as diffusers saves it, whose scheduler is Euler ancestral
with trailing timesteps. PROMPTS is a text file with a prompt a line, or JSON or
Parquet with a column `prompt` or `caption`, as the authors' list of 4,000
captions of Pick-a-Pic; or images in any format that README.md lists, of which
only the captions are read. SHOWN is a text file of those to sample before and
after.

PICKSCORE is the folder of PickScore_v1, on which the authors train too; any
other that jaxpref/models/sdxl/clip_folder.py reads rates as well, and in its
place `--config.score.rater=red` takes how red an image is, to see that it
works. `samples/pickscore` is the mean of the images that are shown.

The constants are those of the authors' code: an adapter of rank 32 with alpha
32, AdamW at 1e-5 with a weight decay of 1e-6, beta 50, clip 0.1, images of 512
pixels in four steps of which the last, without noise, is not learned from. An
update of theirs has 8 pairs on each GPU: multiply `data.batch_size` by your
devices. They make two updates of each set of images, and this makes one; they
compute in float16, and this in bfloat16 with states and log-probabilities in
float32; they save every 100 updates, and name no number to stop at.

A caption takes eight calls of the UNet to draw its two images, six with
gradient and six of the reference. `data.rows_per_device` is how many captions a
device has at a time: each is two images to decode and six latents to learn
from.

Theirs begins an adapter by PEFT's Gaussian and takes AdamW of 8 bits; this one
begins as PEFT does by default, with AdamW in float32.

The authors' DMD2 form, a sampler that adds all its noise afresh:

    --config.model.lora.rank=16 --config.model.lora.alpha=16 \\
    --config.sample.sampler=lcm --config.sample.steps=8 \\
    --config.data.resolution=1024 --config.data.batch_size=4 \\
    --config.data.rows_per_device=1

Their timesteps there are 999, 874, … 124 and this sampler's 999, 879, … 139;
and it mixes a little of the state into the image, as LCM does. All prompts of a
call share their step noise there, and none does here.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {
    "family": "sdxl",
    "param_dtype": "bfloat16",
    "lora": {"rank": 32, "alpha": 32.0},
  }
  config.loss = {"name": "pso", "beta": 50.0, "clip": 0.1}
  config.data = {"resolution": 512, "batch_size": 8, "rows_per_device": 4}
  config.optimizer = {
    "learning_rate": 1e-5,
    "schedule": "constant",
    "weight_decay": 1e-6,
  }
  config.train = {"steps": 1000, "checkpoint_every": 100}
  config.sample = {"sampler": "euler_ancestral", "steps": 4, "guidance": 1.0}
  return config
