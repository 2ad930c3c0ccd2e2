"""Pairs a second of Diffusion-DPO with LoRA: ours beside torch's, in one run.

    python benchmarks/image_step.py --tokenizer FOLDER [--steps 10]

The other side does what diffusers' script for Diffusion-DPO of Stable Diffusion
with LoRA does in a step, on diffusers' models and PEFT's adapter: encodes the
images and the captions, noises them, runs the UNet with the adapter and without
it, and takes AdamW's step. Ours trains through `run`, once from caches, which
hold all of them encoded, and once from pixels, encoding them as it goes as the
script does. All have the same random weights, images, batch and rank, float32.
Noise and timesteps are torch's own on that side, so that its losses agree with
ours in their size alone; ours from caches and from pixels are the same numbers.
TOKENIZER holds vocab.json and merges.txt of CLIP.

Each side runs in a process of its own; the first half of the steps compiles,
and the rate is that of the second half. Seconds that ours takes before training
are told too. One JSON object goes to stdout.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import tempfile
import time
from typing import Any

from sides import in_process

RANK, BETA, RATE = 8, 500.0, 1e-5


def main() -> None:
  flags = _parse()
  if flags.side:
    print(json.dumps(SIDES[flags.side](flags)))
    return
  with tempfile.TemporaryDirectory() as folder:
    flags.folder = folder
    write_inputs(flags)
    found: dict[str, Any] = {x: _in_process(x, flags) for x in SIDES}
  rates = {side: each["pairs_per_second"] for side, each in found.items()}
  for ours, other in (
    ("cached", "torch"),
    ("pixels", "torch"),
    ("cached", "pixels"),
  ):
    found[f"{ours} by {other}"] = round(rates[ours] / rates[other], 2)
  losses = (found[side]["losses"] for side in ("cached", "pixels"))
  found["losses apart"] = max(abs(a - b) for a, b in zip(*losses, strict=True))
  print(json.dumps(found, indent=1))


def write_inputs(flags: argparse.Namespace) -> None:
  """A small random Stable Diffusion, and pairs of noise."""
  import diffusers
  import numpy as np
  from PIL import Image
  import torch
  import transformers

  torch.manual_seed(0)
  folder = pathlib.Path(flags.folder)
  text = transformers.CLIPTextConfig(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    bos_token_id=49406,
    eos_token_id=49407,
  )
  diffusers.StableDiffusionPipeline(
    unet=diffusers.UNet2DConditionModel(
      block_out_channels=tuple(flags.channels),
      down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
      attention_head_dim=4,
      cross_attention_dim=128,
      sample_size=flags.pixels // 4,
    ),
    vae=diffusers.AutoencoderKL(
      block_out_channels=(32, 64, 64),
      down_block_types=("DownEncoderBlock2D",) * 3,
      up_block_types=("UpDecoderBlock2D",) * 3,
      layers_per_block=2,
      sample_size=flags.pixels,
    ),
    text_encoder=transformers.CLIPTextModel(text),
    tokenizer=transformers.CLIPTokenizer.from_pretrained(flags.tokenizer),
    scheduler=diffusers.DDIMScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      clip_sample=False,
      steps_offset=1,
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  ).save_pretrained(folder / "model")
  rng, rows, side = np.random.default_rng(0), [], flags.pixels
  for i in range(flags.batch * 4):
    row = {"prompt": f"a picture, number {i}"}
    for name in ("chosen", "rejected"):
      pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(folder / f"{name}{i}.png")
      row[name] = f"{name}{i}.png"
    rows.append(row)
  path = folder / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_jaxpref(flags: argparse.Namespace, encode: str) -> dict[str, Any]:
  """Trains through `run`, as the command line does.

  Images are encoded `before` or `during` training.
  """
  from jaxpref import config
  from jaxpref.fit.metrics import RunLog, read_metrics
  from jaxpref.run import run

  ticks, write = [_now()], RunLog.write

  def timed(self: RunLog, step: int, values: Any) -> None:
    ticks.append(_now())
    write(self, step, values)

  RunLog.write = timed  # type: ignore[method-assign]
  folder = pathlib.Path(flags.folder)
  os.environ["JAXPREF_CACHE"] = str(folder / f"cache_{encode}")
  settings = config.build(
    {
      "model": {
        "family": "sdxl",
        "path": str(folder / "model"),
        "dtype": "float32",
        "remat": "",
        "lora": {"rank": RANK, "alpha": float(RANK)},
      },
      "data": {
        "path": str(folder / "pairs.jsonl"),
        "batch_size": flags.batch,
        "rows_per_device": 2 * flags.batch,
        "encode": encode,
      },
      "loss": {"name": "dpo", "beta": BETA},
      "optimizer": {"learning_rate": RATE, "schedule": "constant"},
      "train": {"steps": flags.steps, "checkpoint_every": 0},
      "mesh": {"fsdp": 1},
      "sample": {"num_prompts": 0},
    }
  )
  began = time.perf_counter()
  only = dataclasses.replace(settings, stages=("prepare",))
  run(only, folder / f"prepare_{encode}")
  prepared = time.perf_counter() - began
  run(settings, folder / f"run_{encode}")
  losses = [line["loss"] for line in read_metrics(folder / f"run_{encode}")]
  return {
    **_rates(ticks, flags),
    "prepare_seconds": prepared,
    "losses": losses,
  }


def run_torch(flags: argparse.Namespace) -> dict[str, Any]:
  """The step of diffusers' script, image pairs concatenated as there."""
  import diffusers
  import numpy as np
  import peft
  from PIL import Image
  import torch
  import torch.nn.functional as F

  torch.set_num_threads(os.cpu_count() or 1)
  folder = pathlib.Path(flags.folder)
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder / "model")
  unet, vae = pipeline.unet, pipeline.vae
  schedule = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
  for part in (unet, vae, pipeline.text_encoder):
    part.requires_grad_(False)
  targets = ["to_k", "to_q", "to_v", "to_out.0"]
  unet.add_adapter(
    peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
  )
  trained = [p for p in unet.parameters() if p.requires_grad]
  adamw = torch.optim.AdamW(trained, RATE, weight_decay=0.0)
  rows = [
    json.loads(line)
    for line in (folder / "pairs.jsonl").read_text().splitlines()
  ]

  def pixels(rows: list[Any]) -> torch.Tensor:
    names = [row[side] for side in ("chosen", "rejected") for row in rows]
    arrays = [np.asarray(Image.open(folder / name)) for name in names]
    stacked = torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0

  def errors(noisy: Any, time_: Any, context: Any, noise: Any) -> torch.Tensor:
    prediction = unet(noisy, time_, context).sample
    return F.mse_loss(prediction, noise, reduction="none").mean((1, 2, 3))

  ticks, losses = [_now()], []
  for step in range(flags.steps):
    start = step * flags.batch % len(rows)
    here = rows[start : start + flags.batch]
    with torch.no_grad():
      latents = vae.encode(pixels(here)).latent_dist.sample()
      latents = latents * vae.config.scaling_factor
      ids = pipeline.tokenizer(
        [row["prompt"] for row in here],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
      ).input_ids
      context = pipeline.text_encoder(ids)[0].repeat(2, 1, 1)
    noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)
    time_ = torch.randint(0, 1000, (flags.batch,)).repeat(2)
    noisy = schedule.add_noise(latents, noise, time_)
    ours = errors(noisy, time_, context, noise).chunk(2)
    with torch.no_grad():
      unet.disable_adapters()
      ref = errors(noisy, time_, context, noise).chunk(2)
      unet.enable_adapters()
    inside = -0.5 * BETA * ((ours[0] - ours[1]) - (ref[0] - ref[1]))
    loss = -F.logsigmoid(inside).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    adamw.step()
    adamw.zero_grad()
    losses.append(float(loss.detach()))
    ticks.append(_now())
  return {**_rates(ticks, flags), "losses": losses}


SIDES = {
  "torch": run_torch,
  "cached": functools.partial(run_jaxpref, encode="before"),
  "pixels": functools.partial(run_jaxpref, encode="during"),
}


Tick = tuple[float, float]  # seconds: of the clock, of the processor


def _now() -> Tick:
  return time.perf_counter(), time.process_time()


def _rates(ticks: list[Tick], flags: argparse.Namespace) -> dict[str, Any]:
  """Of the second half of the steps, the last ticks of which are theirs."""
  wall, processor = (
    [b - a for a, b in itertools.pairwise(times)]
    for times in zip(*ticks[-flags.steps - 1 :], strict=True)
  )
  first = flags.steps // 2
  half = wall[first:]
  return {
    "pairs_per_second": flags.batch * len(half) / sum(half),
    # What a busy machine changes less.
    "fastest_seconds": min(half),
    "processor_seconds": sum(processor[first:]) / len(half),
    "step_seconds": [round(each, 3) for each in wall],
  }


def _in_process(side: str, flags: argparse.Namespace) -> dict[str, Any]:
  return in_process(
    __file__, side, flags, ("tokenizer", "folder", "batch", "steps")
  )


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--tokenizer", required=True)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--batch", type=int, default=4, help="pairs")
  parser.add_argument("--pixels", type=int, default=64, help="of a side")
  parser.add_argument("--channels", type=int, nargs=2, default=[64, 128])
  parser.add_argument("--side", default="", help=argparse.SUPPRESS)
  parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
  return parser.parse_args()


if __name__ == "__main__":
  main()
