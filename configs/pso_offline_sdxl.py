"""PSO of SDXL-Turbo, offline: on pairs of images that people have compared.

Miao et al. 2024 (https://arxiv.org/abs/2410.03190): both images of a pair are
noised to the timesteps that the 4-step sampler visits; each of its steps with
noise becomes likelier on the way to the better image and less likely on that to
the other, beside the model before training. A step whose likelihood has changed
by a tenth has no gradient any more.

  python -m jaxpref.launch --config=configs/pso_offline_sdxl.py \\
    --workdir=runs/pso_offline --config.model.path=FOLDER \\
    --config.data.path=FILES --config.sample.prompts=PROMPTS \\
    --config.score.models.pickscore=PICKSCORE

FOLDER is SDXL-Turbo as diffusers saves it, whose scheduler is Euler ancestral
with trailing timesteps. FILES are pairs of images in a format that README.md
lists, such as Pick-a-Pic v2. PROMPTS is a text file of those to sample before
and after. PICKSCORE is the folder of PickScore_v1, which rates these samples
(`samples/pickscore`, and `samples/preferred`, the share that it rates higher
than before).

The paper's own code trains only on what it samples, and on photographs. What it
leaves open is decided by name:

- `loss.name=pso_offline` (here) takes the ratio of the sampler's steps for both
  images, clips it by `loss.clip=0.1` and puts each step into a sigmoid of its
  own, as the authors' online code does. `loss.name=pso_offline_sum` is the
  equation: the chosen image by its denoising errors, all steps in one sigmoid,
  no clip. There the rejected side is a way that the model before training
  sampled; pairs of data have none, and the sampler's way to the rejected image
  stands for it.
- `diffusion.share_noise=True`: the images of a pair have the same noise.
- `sample.sampler` and `sample.steps`: the timesteps, all in each training step;
  the last one, without noise, is left out.
- Squares are means over a latent's numbers, as in the authors' code.

The rank of 16, the learning rate of 1e-4 (of 1e-5 and 1e-4) and the beta of 10
(of 1 to 100) are those that a later comparison, FestDPO, chose for offline PSO
at one step; batch size and steps are ours. It reports for SDXL-Turbo, on the
prompts of Pick-a-Pic's test split and one step, a PickScore of 22.37 before and
22.46 after, higher for 65.6 % of the prompts, and an aesthetic score of 6.03
and 6.06. Nothing of this size was run here.

A pair takes six calls of the UNet with gradient and six of the reference.
`data.rows_per_device` counts images, of which each is three latents.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {
    "family": "sdxl",
    "param_dtype": "bfloat16",
    "lora": {"rank": 16, "alpha": 16.0},
  }
  config.loss = {"name": "pso_offline", "beta": 10.0, "clip": 0.1}
  config.data = {"resolution": 512, "batch_size": 64, "rows_per_device": 4}
  config.optimizer = {"learning_rate": 1e-4, "schedule": "constant"}
  config.train = {"steps": 1000}
  config.sample = {"sampler": "euler_ancestral", "steps": 4, "guidance": 1.0}
  return config
