"""What every test shares: 8 host devices, strict numerics, real material."""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Before jax is imported, and inherited by the processes that tests start. The
# lower optimization level halves the seconds spent compiling (44 instead of 79
# for 24 small training steps) and did not slow what runs; what XLA_FLAGS says
# already wins. Only flags that libtpu knows too: it ends the process at others.
for _flag in (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=1",
  # Else the eight may wait for each other: see `hosts.order_collectives`.
  "--xla_cpu_multi_thread_eigen=false",
):
  _given = os.environ.get("XLA_FLAGS", "")
  if _flag.split("=")[0] not in _given:
    os.environ["XLA_FLAGS"] = f"{_given} {_flag}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of real models, data and oracles beside the repository."""
  default = _ROOT.parent / "shared"
  folder = pathlib.Path(os.environ.get("JAXPREF_SHARED", default))
  if not folder.is_dir():
    pytest.skip(
      "no folder of real test material: it belongs in ../shared, or where "
      "JAXPREF_SHARED points"
    )
  return folder


@pytest.fixture(scope="session")
def libtpu() -> None:
  """Skips where the TPU's compiler is not; `make test` installs it."""
  pytest.importorskip("libtpu", reason="no TPU compiler: see the extra `plan`")


@pytest.fixture(scope="session")
def tpu_devices(libtpu: None) -> Sequence[Any]:
  """Eight chips of a TPU v5e that is not there, to compile for."""
  from jaxpref.plan.topology import find_devices

  return find_devices("v5e:2x4")


@pytest.fixture(scope="session")
def make_prepared(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Any]:
  """make_prepared(examples) -> Prepared, written and read as by `prepare`.

  An example is (prompt ids, [response ids, ...], [comparison, ...]), and a
  comparison the arguments of `types.Comparison`: (better, worse, ...). A
  fourth part, if any, is the label of each response: True, False or None; a
  fifth the scores of each, by name.
  """
  from jaxpref.data import build, cache, text
  from jaxpref.types import Comparison, Record, Response

  def make(examples: Any) -> cache.Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    table = build.Table(folder, {"made": 0})
    for row, (prompt, responses, pairs, *rest) in enumerate(examples):
      pairs = [Comparison(*pair) for pair in pairs]
      labels, scores = [*rest, *(None, None)[len(rest) :]]
      texts = [
        Response("", label=label, scores=score)
        for label, score in zip(
          labels or [None] * len(responses),
          scores or [{}] * len(responses),
          strict=True,
        )
      ]
      record = Record(f"made:{row}", "", texts, pairs)
      table.append(record, text.Tokens(list(prompt), list(responses)))
    fingerprint, counts = table.close()
    manifest = {"files": ["made"], "fingerprint": fingerprint, "stats": counts}
    manifest["axes"] = table.axes
    (folder / cache.MANIFEST).write_text(json.dumps(manifest))
    return cache.Prepared(folder)

  return make


@pytest.fixture(scope="session")
def sdxl_folder(
  shared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """A tiny random SDXL, saved by diffusers; its images have 64 pixels a side.

  Real are its tokenizers and its scheduler.
  """
  import diffusers
  import torch
  import transformers

  torch.manual_seed(0)
  text = {
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
  }
  first = transformers.CLIPTextConfig(hidden_size=8, **text)
  second = transformers.CLIPTextConfig(hidden_size=4, projection_dim=8, **text)
  unet = diffusers.UNet2DConditionModel(
    block_out_channels=[8, 16],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    transformer_layers_per_block=[1, 2],
    attention_head_dim=[1, 2],
    layers_per_block=1,
    cross_attention_dim=8 + 4,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=8 + 6 * 4,
    norm_num_groups=4,
    sample_size=8,
  )
  vae = diffusers.AutoencoderKL(
    block_out_channels=[8] * 4,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=64,
    scaling_factor=0.13025,
  )
  tokenizer = shared / "models" / "clip-tokenizer"
  load = transformers.CLIPTokenizer.from_pretrained
  folder = tmp_path_factory.mktemp("sdxl") / "model"
  diffusers.StableDiffusionXLPipeline(
    unet=unet,
    vae=vae,
    text_encoder=transformers.CLIPTextModel(first),
    text_encoder_2=transformers.CLIPTextModelWithProjection(second),
    tokenizer=load(tokenizer),
    tokenizer_2=load(tokenizer, pad_token="!"),
    scheduler=diffusers.EulerDiscreteScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      timestep_spacing="leading",
      steps_offset=1,
    ),
  ).save_pretrained(folder)
  return folder


@pytest.fixture(scope="session")
def sd_folder(
  shared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """As little of a Stable Diffusion 1 as trains: one level; 16 pixels a side.

  Where `sdxl_folder` takes a minute to compile, this takes a quarter of it.
  """
  import diffusers
  import torch
  import transformers

  torch.manual_seed(0)
  unet = diffusers.UNet2DConditionModel(
    block_out_channels=[8],
    down_block_types=["CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D"],
    attention_head_dim=2,
    layers_per_block=1,
    cross_attention_dim=8,
    norm_num_groups=4,
    sample_size=8,
  )
  vae = diffusers.AutoencoderKL(
    block_out_channels=[8] * 2,
    down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=16,
  )
  text = transformers.CLIPTextConfig(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    bos_token_id=49406,
    eos_token_id=49407,
  )
  tokenizer = shared / "models" / "clip-tokenizer"
  folder = tmp_path_factory.mktemp("sd") / "model"
  diffusers.StableDiffusionPipeline(
    unet=unet,
    vae=vae,
    text_encoder=transformers.CLIPTextModel(text),
    tokenizer=transformers.CLIPTokenizer.from_pretrained(tokenizer),
    scheduler=diffusers.DDIMScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      clip_sample=False,
      set_alpha_to_one=False,
      steps_offset=1,
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  ).save_pretrained(folder)
  return folder


@pytest.fixture(scope="session")
def make_corpus(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], pathlib.Path]:
  """make_corpus(24) -> the simulated stories, with 24 comparisons."""
  from jaxpref.data import simulated

  @functools.cache
  def make(num_comparisons: int) -> pathlib.Path:
    return simulated.write_corpus(
      tmp_path_factory.mktemp("simulated") / "corpus",
      num_stories=50,
      num_comparisons=num_comparisons,
      seed=0,
    )

  return make


@pytest.fixture(scope="session")
def tiny_arch() -> dict[str, Any]:
  """A Llama of two layers, with places for all tokens of the corpus."""
  return {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 1024,
  }


@pytest.fixture(scope="session")
def tiny_run(tiny_arch: dict[str, Any]) -> Callable[..., Any]:
  """tiny_run(corpus, {"model": {...}}, ...) -> the config of four steps.

  Each layer is laid over those before it, section by section; a section with
  a name, such as another loss, replaces the whole one.
  """
  from jaxpref import config

  def make(corpus: pathlib.Path, *layers: Mapping[str, Any]) -> config.Config:
    tree: dict[str, Any] = {
      "model": {
        "tokenizer": str(corpus / "tokenizer"),
        "arch": tiny_arch,
        "remat": "",
      },
      "data": {
        "path": str(corpus / "comparisons.jsonl"),
        "batch_size": 4,
        "max_length": 128,
        "row_length": 512,
      },
      "loss": {"name": "dpo", "beta": 0.5},
      "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
      "train": {"steps": 4},
      "mesh": {"fsdp": 1},
      "sample": {"num_prompts": 0},
    }
    for layer in layers:
      for name, section in layer.items():
        kept = {} if "name" in section else tree.get(name, {})
        tree[name] = {**kept, **section}
    return config.build(tree)

  return make


@pytest.fixture(scope="session")
def tiny_images(sd_folder: pathlib.Path) -> Callable[..., Any]:
  """tiny_images(data, {"model": {...}}, ...) -> the config of four steps.

  Of a diffusion model; each layer is laid over those before it, key by key.
  """
  from jaxpref import config

  def make(data: pathlib.Path, *layers: Mapping[str, Any]) -> config.Config:
    tree: dict[str, Any] = {
      "model": {"family": "sdxl", "path": str(sd_folder)},
      "data": {"path": str(data), "batch_size": 4, "rows_per_device": 8},
      "loss": {"name": "dpo", "beta": 500.0},
      "optimizer": {"learning_rate": 1e-4, "schedule": "constant"},
      "train": {"steps": 4},
      "mesh": {"fsdp": 1},
      "sample": {"num_prompts": 0},
    }
    for layer in layers:
      for name, section in layer.items():
        tree[name] = {**tree.get(name, {}), **section}
    return config.build(tree)

  return make


@pytest.fixture
def own_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """A cache folder that no other test has written to."""
  monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
  """run_killed(settings, workdir, step=4): a run that never logs that step.

  With nth=2, the second time that it comes to that step.
  """
  from jaxpref.fit.metrics import RunLog
  from jaxpref.run import run

  def call(settings: Any, workdir: Any, *, step: int, nth: int = 1) -> None:
    write, left = RunLog.write, nth

    def killed(self: RunLog, here: int, values: Any) -> None:
      nonlocal left
      left -= here == step
      if not left:
        raise KeyboardInterrupt
      write(self, here, values)

    with monkeypatch.context() as patch:
      patch.setattr(RunLog, "write", killed)
      with pytest.raises(KeyboardInterrupt):
        run(settings, workdir)

  return call


class Launch:
  """`python -m jaxpref.launch` in a process of its own, as users run it."""

  def __init__(self, cache: pathlib.Path):
    self.cache = cache

  def __call__(
    self, workdir: pathlib.Path, *arguments: Any, status: int = 0, **given: Any
  ) -> subprocess.CompletedProcess[str]:
    """Runs to the end; fails where the exit status is another."""
    process = self.start(workdir, *arguments, **given)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == status, f"{process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, status, out, err)

  def start(
    self,
    workdir: pathlib.Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    config: str = "configs/dpo.py",
    devices: int = 1,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
  ) -> subprocess.Popen[str]:
    """Starts it under overrides such as {"data.seed": 1}."""
    command = [sys.executable, "-m", "jaxpref.launch", f"--config={config}"]
    command += [f"--workdir={workdir}", *arguments]
    command += [f"--config.{key}={x}" for key, x in (overrides or {}).items()]
    count = "--xla_force_host_platform_device_count"
    flags = os.environ["XLA_FLAGS"].split()
    flags = [flag for flag in flags if not flag.startswith(count)]
    return subprocess.Popen(
      command,
      cwd=_ROOT,
      env={
        **os.environ,
        "JAXPREF_CACHE": str(self.cache),
        "XLA_FLAGS": " ".join([*flags, f"{count}={devices}"]),
        **(environment or {}),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
  return Launch(tmp_path_factory.mktemp("cache"))
