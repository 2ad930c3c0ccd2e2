"""Images of a file of prompts, by SDXL or Stable Diffusion.

  python -m jaxpref.launch --config=configs/sample_sdxl.py \\
    --workdir=runs/images --config.model.path=FOLDER \\
    --config.sample.prompts=FILE

FOLDER is what diffusers saves: model_index.json, and a folder for each part
with safetensors. FILE is text with a prompt a line, or .jsonl with `prompt` in
each row; empty lines are passed over, and what goes beyond the encoder's 77
tokens is cut off, which the command tells. `runs/images/samples` then holds a
PNG an image, with its settings in its metadata; samples.jsonl, which says which
is of which prompt; and contact_sheet.png. The command goes on where it was
stopped.

An image depends on its prompt, its number in the file, `sample.seed` and the
settings below, and not on how many are made at a time or on which devices.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.stages = ("sample",)
  config.model = {"family": "sdxl"}
  config.sample = {"steps": 50, "guidance": 5.0, "per_prompt": 1, "seed": 0}
  return config
