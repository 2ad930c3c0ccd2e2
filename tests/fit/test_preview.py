import json

import jax
import pytest

from jaxpref import config
from jaxpref.data import simulated, tokenizer
from jaxpref.errors import UserError
from jaxpref.fit.preview import Preview
from jaxpref.models.build import define, init_params
from jaxpref.models.llama.config import LlamaConfig


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  """A tokenizer of simulated stories."""
  folder = tmp_path_factory.mktemp("simulated") / "corpus"
  simulated.write_corpus(folder, num_stories=50, num_comparisons=4, seed=0)
  return tokenizer.load(folder / "tokenizer")


@pytest.fixture(scope="module")
def model(words):
  sizes = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": len(words),
  }
  definition = define(LlamaConfig.from_arch(sizes), dtype="float32", remat="")
  return definition, init_params(definition, jax.random.key(0))


@pytest.fixture
def preview(words, tmp_path):
  """preview(prompts=..., pattern=...) -> Preview of a file of prompts."""
  path = tmp_path / "prompts.txt"
  path.write_text("Once there was a fox.\n\nMia had a kite.\n")

  def make(pattern="", **given):
    sample = {"prompts": str(path), "num_prompts": 8, "max_new_tokens": 3}
    return Preview(
      config.Sample(**{**sample, **given}),
      config.Score(pattern=pattern),
      words,
      [words.eos_token_id],
      None,
    )

  return make


def _lines(folder):
  text = (folder / "samples" / "samples.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_writes_a_line_a_sample(preview, model, tmp_path):
  made = preview(per_prompt=2, seed=3)
  assert made.write(tmp_path, 0, *model) == {}
  lines = _lines(tmp_path)
  assert [line["step"] for line in lines] == [0] * 4
  prompts = [line["prompt"] for line in lines]
  assert prompts[:2] == ["Once there was a fox."] * 2
  assert prompts[2:] == ["Mia had a kite."] * 2
  assert all(line["seed"] == 3 for line in lines)
  assert all(isinstance(line["response"], str) for line in lines)


def test_a_step_is_replaced_and_others_kept(preview, model, tmp_path):
  made = preview(num_prompts=1)
  for step in (0, 5, 5):  # killed after the samples, and run again
    made.write(tmp_path, step, *model)
  assert [line["step"] for line in _lines(tmp_path)] == [0, 5]


def test_same_seed_same_texts(preview, model, tmp_path):
  made = preview()
  made.write(tmp_path, 0, *model)
  made.write(tmp_path, 1, *model)
  lines = _lines(tmp_path)
  first, second = (
    [x["response"] for x in lines if x["step"] == step] for step in (0, 1)
  )
  assert first == second


@pytest.mark.parametrize(("pattern", "share"), [("(?s).*", 1.0), ("!!!", 0.0)])
def test_share_that_matches(preview, model, tmp_path, pattern, share):
  assert preview(pattern).write(tmp_path, 0, *model) == {
    "samples/pattern": share
  }
  assert {line["scores"]["pattern"] for line in _lines(tmp_path)} == {share}


@pytest.mark.parametrize("given", [{"num_prompts": 0}, {"prompts": ""}])
def test_nothing_to_sample(preview, model, tmp_path, given):
  """Switched off; or neither a file nor held-out prompts."""
  assert preview(**given).write(tmp_path, 0, *model) == {}
  assert not (tmp_path / "samples").exists()


def test_prompts_of_jsonl(preview, model, tmp_path):
  path = tmp_path / "prompts.jsonl"
  path.write_text('{"prompt": "Mia had a kite."}\n')
  preview(prompts=str(path)).write(tmp_path, 0, *model)
  (line,) = _lines(tmp_path)
  assert line["prompt"] == "Mia had a kite."


@pytest.mark.parametrize(
  ("name", "content", "told"),
  [
    ("missing.txt", None, "there is no file"),
    ("empty.txt", "\n\n", "holds no prompt"),
    ("bad.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2"),
    ("torn.jsonl", '{"prompt": "a"}\n{"prom', "line 2"),
  ],
)
def test_file_of_prompts_that_cannot_be_used(
  preview, tmp_path, name, content, told
):
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=told) as info:
    preview(prompts=str(tmp_path / name))
  assert name in str(info.value)


def test_bad_pattern(preview):
  with pytest.raises(UserError, match=r"config\.score\.pattern"):
    preview("(")
