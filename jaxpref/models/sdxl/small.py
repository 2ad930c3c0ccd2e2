"""A Stable Diffusion of a few thousand weights, made from nothing.

It is as complete as a large one (a tokenizer, a text encoder, an autoencoder,
a UNet and a scheduler, in a folder that diffusers loads), and small enough to
train on a laptop's cores. Nothing in it comes from elsewhere: the tokenizer
knows the words that it is given, and the text encoder is random and stays so.
"""

from collections.abc import Sequence
import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.models.build import Definition, define, init_params
from jaxpref.models.export import write_json
from jaxpref.models.sdxl.clip_config import ClipTextConfig
from jaxpref.models.sdxl.config import UNetConfig
from jaxpref.models.sdxl.pipeline import Pipeline, save_pipeline
from jaxpref.models.sdxl.vae_config import VaeConfig
from jaxpref.types import Params

PLACES = 8  # tokens of a text, with the one before it and those after
_WIDTH = 32  # of the text's states
_START, _END = "<|startoftext|>", "<|endoftext|>"


def small_vae(side: int) -> VaeConfig:
  """Pixels of `side` to latents of a quarter of it, with 4 channels."""
  return VaeConfig(
    block_out_channels=(8, 16, 32),
    layers_per_block=1,
    # Groups of their own would lose how strong one colour is beside another.
    norm_num_groups=1,
    mid_block_add_attention=False,
    sample_size=side,
  )


def small_unet(side: int) -> UNetConfig:
  """Of latents of `side`, and of half of it within, where it attends."""
  return UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=_WIDTH,
    norm_num_groups=4,
    sample_size=side,
  )


def init_small(definition: Definition, seed: int) -> Params:
  """Random weights that learn fast: residual branches begin at zero.

  Reference: Goyal et al. 2017, section 5.1 (https://arxiv.org/abs/1706.02677),
  of the last scale of a branch; here it is the last convolution.
  """
  # Of this generator, sixty tensors compile in a sixth of the time.
  params = init_params(definition, jax.random.key(seed, impl="unsafe_rbg"))
  last = jax.tree_util.DictKey("conv2")
  return jax.tree.map_with_path(
    lambda path, x: jnp.zeros_like(x) if last in path else x, params
  )


def write_small(
  folder: pathlib.Path,
  vae: Definition,
  vae_params: Params,
  words: Sequence[str],
  *,
  seed: int = 0,
) -> None:
  """Writes a StableDiffusionPipeline: a trained autoencoder, random the rest.

  Args:
    folder: made anew; an earlier one is replaced.
    vae: the autoencoder, with its scaling factor.
    vae_params: its weights.
    words: lower-case words that are a token each; others are spelled.
    seed: of the random weights.
  """
  vocabulary, merges = clip_vocabulary(words)
  side = vae.config.sample_size // vae.config.factor
  definitions = {
    "unet": define(small_unet(side), dtype="float32", remat=""),
    "text_encoder": define(
      _text_config(len(vocabulary)), dtype="float32", remat=""
    ),
    "vae": vae,
  }
  params = {"vae": vae_params}
  for number, name in enumerate(("unet", "text_encoder")):
    params[name] = init_small(definitions[name], 2 * seed + number)
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent) as name:
    rest = pathlib.Path(name)
    _write_tokenizer(rest / "tokenizer", vocabulary, merges)
    (rest / "scheduler").mkdir()
    write_json(rest / "scheduler" / "scheduler_config.json", _SCHEDULER)
    save_pipeline(folder, Pipeline(rest, _INDEX, definitions, ""), params)


def clip_vocabulary(
  words: Sequence[str],
) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """The tokens of a CLIP tokenizer by id, and which two are merged, in order.

  All bytes are tokens, so that no text is unknown, and each word is built up
  letter by letter from its beginning.

  Args:
    words: of which none may end as another begins in a way that a merge of
      the other's takes letters of it; a test says so of those in use.
  """
  from tokenizers import pre_tokenizers  # here: it imports slowly

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
  merges: list[tuple[str, str]] = []
  for word in words:
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    built = pieces[0]
    for piece in pieces[1:]:
      if (built, piece) not in merges:
        merges.append((built, piece))
        tokens.append(built + piece)
      built += piece
  tokens += [_START, _END]
  return {token: number for number, token in enumerate(tokens)}, merges


def _text_config(vocabulary: int) -> ClipTextConfig:
  ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
  return ClipTextConfig(
    hidden_size=_WIDTH,
    intermediate_size=2 * _WIDTH,
    num_hidden_layers=1,
    num_attention_heads=2,
    projection_dim=_WIDTH,
    vocab_size=vocabulary,
    max_position_embeddings=PLACES,
    eos_token_id=vocabulary - 1,
    given=json.dumps({**ids, "pad_token_id": vocabulary - 1}),
  )


def _write_tokenizer(
  folder: pathlib.Path,
  vocabulary: dict[str, int],
  merges: Sequence[tuple[str, str]],
) -> None:
  folder.mkdir()
  write_json(folder / "vocab.json", vocabulary)
  lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  write_json(
    folder / "tokenizer_config.json",
    {
      "tokenizer_class": "CLIPTokenizer",
      "model_max_length": PLACES,
      "bos_token": _START,
      "eos_token": _END,
      "pad_token": _END,
      "unk_token": _END,
      "do_lower_case": True,
    },
  )


_INDEX: dict[str, Any] = {
  "_class_name": "StableDiffusionPipeline",
  "feature_extractor": [None, None],
  "image_encoder": [None, None],
  "requires_safety_checker": False,
  "safety_checker": [None, None],
  "scheduler": ["diffusers", "DDIMScheduler"],
  "text_encoder": ["transformers", "CLIPTextModel"],
  "tokenizer": ["transformers", "CLIPTokenizer"],
  "unet": ["diffusers", "UNet2DConditionModel"],
  "vae": ["diffusers", "AutoencoderKL"],
}
_SCHEDULER: dict[str, Any] = {
  "_class_name": "DDIMScheduler",
  "num_train_timesteps": 1000,
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "prediction_type": "epsilon",
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}
