"""configs/dpo.py on real weights and comparisons, beside TRL's numbers."""

import html.parser
import json
import math
import pathlib
import struct

import numpy as np
import pytest

from jaxpref import config

BETA = 0.1


@pytest.fixture(scope="module")
def oracle(shared):
  return json.loads((shared / "oracles" / "trl-dpo.json").read_text())


@pytest.fixture(scope="module")
def overrides(shared, oracle, tmp_path_factory):
  data = tmp_path_factory.mktemp("oracle") / "comparisons.jsonl"
  rows = [json.dumps(row) + "\n" for row in oracle["rows"]]
  data.write_text("".join(rows))
  return {
    "model.path": shared / "models" / "stories260K",
    "data.path": data,
    "data.batch_size": 8,
    "data.shuffle": False,
    "train.steps": 10,
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "constant",
    "optimizer.grad_clip": 0.0,
  }


@pytest.fixture(scope="module")
def workdir(launch, overrides, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "oracle"
  launch(workdir, overrides)
  return workdir


# In the comments: the largest difference seen, on CPU at both levels of XLA.
def test_ten_steps_as_trl(workdir, oracle, metrics):
  lines, curve = metrics(workdir), oracle["curve"]
  assert [line["step"] for line in lines] == list(range(1, len(curve) + 1))

  def both(name: str) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([x[name] for x in each]) for each in (lines, curve))

  assert abs(lines[0]["loss"] - math.log(2.0)) <= 1e-6  # 0.0
  np.testing.assert_allclose(*both("loss"), atol=2e-3, rtol=0)  # 4e-6
  np.testing.assert_allclose(*both("grad_norm"), rtol=0.01)  # 9e-6
  for side in ("chosen", "rejected"):
    np.testing.assert_allclose(
      *both(f"logps/{side}"), atol=0.02, rtol=0
    )  # 2e-4
    # A reward is beta times a log-prob minus the reference's.
    np.testing.assert_allclose(
      *both(f"rewards/{side}"), atol=BETA * 0.02, rtol=0
    )
  np.testing.assert_allclose(*both("rewards/margins"), atol=BETA * 0.04, rtol=0)
  # In step 1 all margins are zero but for rounding, and so is their order.
  ours, theirs = both("rewards/accuracies")
  np.testing.assert_array_equal(ours[1:], theirs[1:])


def test_folder_holds_what_is_promised(workdir, metrics, overrides, oracle):
  names = {each.name for each in workdir.iterdir()}
  assert names >= {
    "config.json", "metrics.jsonl", "checkpoints", "export", "rejected.jsonl",
    "report.html", "data.json",
  }  # fmt: skip
  assert (workdir / "rejected.jsonl").read_text() == ""
  keys = {
    "step", "loss", "grad_norm", "learning_rate", "rewards/chosen",
    "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "rewards/ties", "logps/chosen", "logps/rejected", "pairs_per_second",
    "tokens_per_second", "useful_tflops_per_second_per_device",
    "data/wait_share",
  }  # fmt: skip
  for line in metrics(workdir):
    assert line.keys() >= keys
    assert all(math.isfinite(line[key]) for key in keys)
    assert line["learning_rate"] == pytest.approx(1e-4, rel=1e-6)
    assert line["pairs_per_second"] > 0.0
    assert line["tokens_per_second"] > line["pairs_per_second"]
  assert [each.name for each in (workdir / "checkpoints").iterdir()] == ["10"]
  data = json.loads((workdir / "data.json").read_text())["train"]
  assert data["rows"] == data["examples"] == len(oracle["rows"])
  told = oracle["tokens"]
  counted = [each[f"{side}_ids"] for each in told for side in ("chosen",
             "rejected", "prompt")]  # fmt: skip
  assert data["tokens"] == sum(map(len, counted))


def test_config_is_resolved(workdir, overrides):
  """It names what was asked for, and for some of 'auto' what that came to."""
  found = json.loads((workdir / "config.json").read_text())
  given = {key: str(value) for key, value in overrides.items()}
  loaded, _ = config.load("configs/dpo.py", given)
  expected = config.to_dict(loaded)
  assert config.to_dict(config.build(found)) == found
  assert found.keys() == expected.keys()
  for section, values in expected.items():
    if isinstance(values, dict):
      assert found[section].keys() == values.keys()
      for name, value in values.items():
        came_to = found[section][name]
        assert value in (came_to, "auto"), f"{section}.{name}: {came_to}"


def test_events_say_what_the_lines_say(workdir, metrics):
  from tensorboardX.proto.event_pb2 import Event

  (path,) = (workdir / "tensorboard").iterdir()
  content, start, found = path.read_bytes(), 0, {}
  while start < len(content):  # of each record: length, crc, event, crc
    (length,) = struct.unpack_from("<Q", content, start)
    event = Event.FromString(content[start + 12 : start + 12 + length])
    for value in event.summary.value:
      found[event.step, value.tag] = value.simple_value
    start += length + 16
  told = {
    (line["step"], key): np.float32(value)
    for line in metrics(workdir)
    for key, value in line.items()
    if key != "step"
  }
  assert found == told


def test_export_is_what_was_trained(workdir, shared, oracle, last_checkpoint):
  import jax.numpy as jnp
  import torch
  import transformers

  from jaxpref.models import huggingface
  from jaxpref.models.build import bind, define
  from jaxpref.ops.attention import padded_attention

  export = workdir / "export"
  tokenizer = transformers.AutoTokenizer.from_pretrained(export)
  ids = tokenizer(oracle["rows"][0]["chosen"], return_tensors="pt").input_ids
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    export, dtype=torch.float32
  )
  before = transformers.AutoModelForCausalLM.from_pretrained(
    shared / "models" / "stories260K", dtype=torch.float32
  )
  with torch.no_grad():
    logits, old = (model(ids).logits.numpy() for model in (theirs, before))

  definition = define(huggingface.read_config(export), dtype="float32")
  model = bind(definition, huggingface.load_params(export, definition))
  tokens = jnp.asarray(ids.numpy(), jnp.int32)
  attend = padded_attention(jnp.ones(tokens.shape, bool))
  hidden, _ = model(tokens, jnp.arange(tokens.shape[1])[None], attend)
  ours = hidden @ model.head_kernel()
  np.testing.assert_allclose(ours, logits, atol=1e-4, rtol=0)  # 2e-5
  assert np.abs(logits - old).max() > 0.1  # it was trained
  np.testing.assert_array_equal(
    theirs.model.embed_tokens.weight.detach().numpy(),
    last_checkpoint(workdir)["params.policy.embed.table"],
  )


def test_report_is_one_file(workdir):
  _assert_self_contained((workdir / "report.html").read_text())


def _assert_self_contained(page: str) -> None:
  class Links(html.parser.HTMLParser):
    def __init__(self) -> None:
      super().__init__()
      self.loaded: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attributes) -> None:
      for name, value in attributes:
        # An <a href> is followed only by who clicks it.
        loads = name in ("src", "srcset", "data", "poster", "xlink:href") or (
          name == "href" and tag != "a"
        )
        if loads and not (value or "").startswith(("data:", "#")):
          self.loaded.append((tag, value))

  links = Links()
  links.feed(page)
  assert not links.loaded
  assert "@import" not in page
  assert "url(http" not in page
  assert "<html" in page


def test_held_out_samples_and_rejected_rows(
  launch, overrides, tmp_path, oracle, metrics
):
  """What the ten steps above do not show, in two."""
  data = tmp_path / "comparisons.jsonl"
  rows = [json.dumps(row) for row in oracle["rows"]]
  rows[6] = "{broken"
  data.write_text("\n".join(rows))
  settings = {
    "data.path": data,
    "data.max_rejected": 0.02,
    "data.eval_holdout": 16,
    "sample.num_prompts": 2,
    "sample.max_new_tokens": 8,
    "train.steps": 2,
  }
  done = launch(tmp_path / "run", {**overrides, **settings})

  (refused,) = _lines(tmp_path / "run" / "rejected.jsonl")
  assert refused["row"] == 7
  assert refused["file"] == "comparisons.jsonl"
  assert "not JSON" in refused["reason"]
  assert "1 refused (1 not JSON)" in done.stdout

  first, *_, last = metrics(tmp_path / "run")
  assert (first["step"], last["step"]) == (0, 2)
  assert abs(first["eval/rewards/margins"]) < 1e-5  # rounding: 0.0
  for line in (first, last):
    for name in ("eval/rewards/accuracies", "eval/logps/accuracies"):
      share = line[name]
      assert round(share * 16) == pytest.approx(share * 16)
      error = math.sqrt(share * (1.0 - share) / 16)
      assert line[f"{name}_stderr"] == pytest.approx(error)
  share = last["eval/rewards/accuracies"]
  error = last["eval/rewards/accuracies_stderr"]
  assert f"{share:.3f} ± {error:.3f}" in done.stdout

  samples = _lines(tmp_path / "run" / "samples" / "samples.jsonl")
  assert [each["step"] for each in samples] == [0, 0, 2, 2]
  prompts = {row["prompt"] for row in oracle["rows"]}
  for each in samples:
    assert each.keys() >= {"prompt", "response", "seed"}
    assert each["prompt"] in prompts
    assert each["response"]
  page = (tmp_path / "run" / "report.html").read_text()
  _assert_self_contained(page)
  assert samples[-1]["response"][:5].strip() in page


def _lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]
