"""Virtual tokens there and back, beside the library PEFT."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from jaxpref import config, sharding
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.objectives import score_text, without_prefix
from jaxpref.models.adapter import CONFIG, TENSORS
from jaxpref.models.build import bind, define, init_params
from jaxpref.models.huggingface import (
  load_params,
  read_config,
  save_pretrained,
)
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.lora import overlay
from jaxpref.models.prompt_file import (
  NAME,
  load_prompt,
  save_prompt,
  with_prompt,
)
from jaxpref.models.source import open_source, resolve_model
from jaxpref.ops.attention import padded_attention
from jaxpref.sample.text import generate

# PEFT asks transformers for it by its older name, and says of the positions
# that transformers makes for `generate` that it makes its own.
pytestmark = [
  pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
  ),
  pytest.mark.filterwarnings(
    "ignore:Position ids are not supported for parameter:UserWarning"
  ),
]

LENGTH = 5
TOKENS = np.random.default_rng(0).integers(3, 90, (3, 12))
WINDOW = {"sliding_window": 7, "use_sliding_window": True}
FAMILIES = {
  "llama": {},
  "qwen3": {**WINDOW, "max_window_layers": 1},
  "gemma3_text": {"sliding_window": 7, "tie_word_embeddings": True},
}


@pytest.fixture(params=FAMILIES)
def base(request, make_torch, folder_of):
  """A folder of a tiny random model; a window is shorter than the texts."""
  return folder_of(make_torch(request.param, **FAMILIES[request.param]))


@pytest.fixture
def llama(make_torch, folder_of):
  return folder_of(make_torch())


def _definition(base, length=LENGTH, **given):
  prompt = config.Prompt(length=length)
  return define(read_config(base), dtype="float32", prompt=prompt, **given)


def _trained(definition):
  """As after training: not what any prompt begins with."""
  shape = definition.shapes["prompt"]["embedding"].shape
  values = np.random.default_rng(1).standard_normal(shape)
  return {"prompt": {"embedding": jnp.asarray(values, jnp.float32)}}


def _logits(definition, params):
  """Of the texts, behind the virtual tokens."""
  length = definition.prompt.length
  tokens = np.pad(TOKENS, ((0, 0), (length, 0)), constant_values=91)
  place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
  model = bind(definition, params)
  attend = padded_attention(jnp.ones(tokens.shape, bool))
  hidden, _ = model(
    jnp.asarray(tokens, jnp.int32),
    jnp.broadcast_to(place, tokens.shape),
    attend,
  )
  return model.cap(hidden @ model.head_kernel())[:, length:]


def _whole(base, definition, prompt):
  return overlay(load_params(base, definition.base), prompt)


def _model(base):
  return transformers.AutoModelForCausalLM.from_pretrained(
    base, attn_implementation="eager"
  ).train(False)


def _prompted(base, folder):
  return peft.PeftModel.from_pretrained(_model(base), folder).train(False)


def _to_train(base):
  settings = peft.PromptTuningConfig(
    num_virtual_tokens=LENGTH, task_type="CAUSAL_LM"
  )
  torch.manual_seed(0)
  return peft.get_peft_model(_model(base), settings)


def _torch_logits(model, tokens=TOKENS):
  with torch.no_grad():
    return model(torch.tensor(tokens)).logits[:, -len(tokens[0]) :].numpy()


def test_exports_load_in_peft(base, tmp_path):
  """With equal logits, and the same text sampled."""
  definition = _definition(base)
  prompt = _trained(definition)
  params = _whole(base, definition, prompt)
  ours = np.asarray(_logits(definition, params))
  save_prompt(tmp_path / "adapter", definition, prompt, str(base))
  model = _prompted(base, tmp_path / "adapter")
  # Measured: 6e-6, of logits of up to 5.
  np.testing.assert_allclose(_torch_logits(model), ours, atol=1e-4)
  assert np.abs(ours - _torch_logits(_model(base))).max() > 0.3
  wrong = {"prompt": {"embedding": prompt["prompt"]["embedding"][::-1]}}
  wrong = _logits(definition, overlay(params, wrong))
  assert np.abs(wrong - ours).max() > 1e-2
  told = generate(
    definition, params, TOKENS.tolist(), max_new_tokens=9, temperature=0.0
  )
  expected = model.generate(
    input_ids=torch.tensor(TOKENS),
    attention_mask=torch.ones(TOKENS.shape, dtype=torch.long),
    max_new_tokens=9,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=0,
  )
  assert told == expected[:, -9:].tolist()


def test_gradients_are_those_of_peft(base):
  definition = _definition(base)
  prompt = _trained(definition)
  params = load_params(base, definition.base)
  weights = np.random.default_rng(2).standard_normal((3, 12, 96))
  weights = weights.astype(np.float32)

  @jax.jit
  @jax.grad
  def gradient(prompt):
    logits = _logits(definition, overlay(params, prompt))
    return jnp.sum(weights * jax.nn.log_softmax(logits))

  model = _to_train(base)
  (embedding,) = (x for x in model.parameters() if x.requires_grad)
  with torch.no_grad():
    embedding.copy_(torch.tensor(np.asarray(prompt["prompt"]["embedding"])))
  logits = model(torch.tensor(TOKENS)).logits[:, LENGTH:]
  logp = torch.log_softmax(logits, dim=-1)
  (torch.tensor(weights) * logp).sum().backward()
  theirs = embedding.grad.numpy()
  ours = np.asarray(gradient(prompt)["prompt"]["embedding"])
  # Measured: 1e-6 of the largest.
  scale = np.abs(theirs).max()
  np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4)
  assert np.abs(ours).min(axis=1).max() > 0.0


def test_prompts_of_peft_are_read(base, tmp_path):
  _save_with_peft(base, tmp_path / "peft")
  prompt = with_prompt(config.Prompt(path=str(tmp_path / "peft")))
  assert prompt == config.Prompt(path=str(tmp_path / "peft"), length=LENGTH)
  assert with_prompt(prompt) == prompt
  definition = _definition(base)
  found = load_prompt(prompt.path, definition)
  ours = np.asarray(_logits(definition, _whole(base, definition, found)))
  theirs = _torch_logits(_prompted(base, tmp_path / "peft"))
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  # And come back bit-equal.
  save_prompt(tmp_path / "again", definition, found, str(base))
  before, after = (
    safetensors.numpy.load_file(tmp_path / name / TENSORS)
    for name in ("peft", "again")
  )
  assert before.keys() == after.keys() == {NAME}
  np.testing.assert_array_equal(before[NAME], after[NAME], strict=True)
  before, after = (
    json.loads((tmp_path / name / CONFIG).read_text())
    for name in ("peft", "again")
  )
  differ = {key for key in after if after[key] != before[key]}
  assert not differ


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_begin_as_rows_of_the_vocabulary(base, tmp_path, dtype):
  """As the model reads them, which PEFT takes too; others by another seed."""
  model = _model(base).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / "base")
  ids = torch.arange(96)
  table = model.get_input_embeddings()(ids).detach().float().numpy()
  settings = config.Model(
    path=str(tmp_path / "base"),
    dtype="float32",
    prompt=config.Prompt(length=LENGTH),
  )
  found = []
  for seed in (0, 0, 1):
    source = open_source(settings, seed=seed, tokenizer=None)
    rows = np.asarray(source.load(None)["prompt"]["embedding"])
    assert rows.shape == (LENGTH, 32)
    assert rows.dtype == np.float32
    near = np.abs(rows[:, None] - table).max(axis=-1)
    # A root of 32 is rounded to bfloat16 there, and not here.
    assert near.min(axis=1).max() < (1e-6 if dtype == "float32" else 0.02)
    found.append(near.argmin(axis=1).tolist())
  assert found[0] == found[1] != found[2]
  assert len(set(found[0])) > 1


def test_prompts_of_random_weights_are_rows_of_those():
  arch = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 64}
  prompt = config.Prompt(length=LENGTH)
  definition = define(
    LlamaConfig.from_arch(arch), dtype="float32", prompt=prompt
  )
  rows = init_params(definition, jax.random.key(3))["prompt"]["embedding"]
  rows = np.asarray(rows)
  table = init_params(definition.base, jax.random.key(3))["embed"]["table"]
  equal = np.isclose(rows[:, None], np.asarray(table)[None]).all(axis=-1)
  assert equal.any(axis=1).all()


@pytest.fixture(scope="module")
def examples():
  """Trees of one to three responses, two in a row, and one split in two."""
  rng = np.random.default_rng(4)
  take = lambda n: rng.integers(3, 90, size=n).tolist()
  shapes = [(4, [7, 3]), (1, [2, 2, 5]), (6, [9, 12, 8]), (3, [1])]
  return [
    (take(prompt), [take(n) for n in lengths], []) for prompt, lengths in shapes
  ]


def _batches(data, **given):
  steps = Steps(data, batch_size=4, rows=2, row_length=40, **given)
  batch = jax.tree.map(jnp.asarray, steps[0])
  micro = [
    jax.tree.map(lambda x, m=m: x[m], batch)
    for m in range(steps.shape.micro_batches)
  ]
  return steps, micro


def _by_response(steps, values):
  """Of each response its values, in its order."""
  arrays = np.stack([np.asarray(x) for x in values])
  packing, shape = steps.packing(0)
  found = {}
  for m, micro in enumerate(packing):
    for r, row in enumerate(micro):
      start = 0
      for number in (j for piece in row for j in piece.responses):
        end = start + int(steps.data.response_lengths[number])
        found[number] = arrays[m, r, start:end]
        start = end
  assert arrays.shape[2] == shape.responses
  return found


@pytest.mark.parametrize("share", [True, False], ids=["shared", "repeated"])
def test_packed_rows_score_as_peft_does(
  base, tmp_path, make_prepared, examples, share
):
  """Virtual tokens are a part of each tree's shared prompt."""
  definition = _definition(base)
  prompt = _trained(definition)
  params = _whole(base, definition, prompt)
  data = make_prepared(examples)
  steps, batches = _batches(data, share_prompts=share, prefix=LENGTH)
  assert {batch.prefix for batch in batches} == {LENGTH}
  ours = _by_response(
    steps, [score_text(definition, params, x, 16) for x in batches]
  )
  save_prompt(tmp_path / "adapter", definition, prompt)
  model = _prompted(base, tmp_path / "adapter")
  number = 0
  for text, responses, _ in examples:
    for response in responses:
      logits = _torch_logits(model, [[*text, *response]])[0]
      logp = torch.log_softmax(torch.tensor(logits), dim=-1).numpy()
      places = np.arange(len(text) - 1, len(text) + len(response) - 1)
      # Measured: 4e-6.
      expected = logp[places, response]
      np.testing.assert_allclose(ours[number], expected, atol=1e-4)
      number += 1


def test_the_base_sees_no_virtual_token(base, make_prepared, examples):
  """Its log-probs are those of rows that were packed without them."""
  definition = _definition(base)
  params = load_params(base, definition.base)
  data = make_prepared(examples)
  plain_steps, plain = _batches(data)
  steps, batches = _batches(data, prefix=LENGTH)
  score = lambda batch: score_text(definition.base, params, batch, 16)
  expected = _by_response(plain_steps, map(score, plain))
  found = _by_response(steps, map(score, batches))
  seen = [dataclasses.replace(batch, prefix=0) for batch in batches]
  wrong = _by_response(steps, map(score, seen))
  for number, values in expected.items():
    # Measured: 3e-6.
    np.testing.assert_allclose(found[number], values, atol=1e-5)
    assert np.abs(wrong[number] - values).max() > 1e-2
  assert without_prefix(plain[0]).prefix == 0


def test_shards_are_read_and_gathered(llama, tmp_path):
  mesh = sharding.make_mesh(1, 4, 2)
  definition = _definition(llama)
  save_prompt(tmp_path / "alone", definition, _trained(definition))
  places = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  found = load_prompt(tmp_path / "alone", definition, places)
  assert found["prompt"]["embedding"].sharding.is_fully_replicated
  save_prompt(tmp_path / "sharded", definition, found)
  one, other = (
    (tmp_path / name / TENSORS).read_bytes() for name in ("alone", "sharded")
  )
  assert one == other
  settings = config.Model(
    dtype="float32", path=str(llama), prompt=definition.prompt
  )
  source = open_source(settings, seed=0, tokenizer=None)
  begun = [source.load(where) for where in (None, places)]
  jax.tree.map(np.testing.assert_array_equal, *begun)


@pytest.mark.parametrize(
  ("given", "told"),
  [
    (
      {"peft_type": "LORA"},
      r"peft_type is 'LORA', .*config\.model\.lora\.path",
    ),
    ({"peft_type": "P_TUNING"}, "peft_type is 'P_TUNING'"),
    ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0; it must be"),
    ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
    ({"num_virtual_tokens": 6}, r"has the shape \[5, 32\]; .* \[6, 32\]"),
  ],
  ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_settings_that_would_be_another_kind(llama, tmp_path, given, told):
  _save_with_peft(llama, tmp_path / "peft")
  path = tmp_path / "peft" / CONFIG
  path.write_text(json.dumps({**json.loads(path.read_text()), **given}))
  with pytest.raises(UserError, match=told) as error:
    _open(llama, tmp_path / "peft")
  assert str(tmp_path / "peft") in str(error.value)


def test_tensors_that_do_not_fit(llama, tmp_path):
  _save_with_peft(llama, tmp_path / "peft")
  path = tmp_path / "peft" / TENSORS
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({**tensors, "other": tensors[NAME]}, path)
  with pytest.raises(UserError, match="other is left over"):
    _open(llama, tmp_path / "peft")
  safetensors.numpy.save_file({"other": tensors[NAME]}, path)
  with pytest.raises(UserError, match="prompt_embeddings is missing"):
    _open(llama, tmp_path / "peft")
  path.unlink()
  with pytest.raises(UserError, match=r"model\.prompt\.path: .* is a pickle"):
    _open(llama, tmp_path / "peft")
  with pytest.raises(UserError, match=r"prompt\.path: there is no .*nowhere"):
    _open(llama, tmp_path / "nowhere")


def test_a_prompt_of_another_base(llama, tmp_path):
  _save_with_peft(llama, tmp_path / "peft")
  _open(llama, tmp_path / "peft")
  other = shutil.copytree(llama, tmp_path / "other")
  _open(other, tmp_path / "peft")
  tensors = safetensors.numpy.load_file(other / "model.safetensors")
  tensors["model.norm.weight"] *= 2
  safetensors.numpy.save_file(tensors, other / "model.safetensors")
  with pytest.raises(UserError, match=r"prompt\.path: .* belongs to the wei"):
    _open(other, tmp_path / "peft")


def test_what_prompts_do_not_go_with(llama, tmp_path):
  _save_with_peft(llama, tmp_path / "peft")
  prompt = config.Prompt(path=str(tmp_path / "peft"), length=4)
  with pytest.raises(UserError, match=r"is 4, and .* has 5 virtual tokens"):
    with_prompt(prompt)
  settings = config.Model(
    dtype="float32", path=str(llama), prompt=config.Prompt(length=4)
  )
  with pytest.raises(UserError, match="the loss trains a reward model"):
    open_source(settings, seed=0, tokenizer=None, rewards=True)
  definition = _definition(llama)
  params = _whole(llama, definition, _trained(definition))
  with pytest.raises(UserError, match="cannot be added to a model's weights"):
    save_pretrained(tmp_path / "merged", definition, params)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").touch()
  with pytest.raises(UserError, match=r"has no adapter_config\.json"):
    save_prompt(tmp_path / "mine", definition, params)


def _open(base, folder):
  prompt = config.Prompt(path=str(folder))
  settings = resolve_model(config.Model(path=str(base), prompt=prompt), "cpu")
  return open_source(settings, seed=0, tokenizer=None)


def _save_with_peft(base, folder):
  _to_train(base).save_pretrained(folder)
