"""Reward heads against transformers' sequence classifiers."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpref.errors import UserError
from jaxpref.models import heads, huggingface
from jaxpref.models.build import bind, define, init_params
from jaxpref.ops.attention import padded_attention

PAD, EOS = 5, 7
AXES = ("helpful", "honest")


@pytest.fixture
def make_classifier(make_torch):
  """make_classifier(**config) -> a random LlamaForSequenceClassification."""

  def make(**given):
    model = make_torch(pad_token_id=PAD, eos_token_id=EOS, **given)
    config = transformers.LlamaConfig(
      **{**model.config.to_dict(), "id2label": dict(enumerate(AXES))}
    )
    classifier = transformers.LlamaForSequenceClassification(config).train(
      False
    )
    classifier.model.load_state_dict(model.model.state_dict())
    torch.nn.init.normal_(classifier.score.weight, std=0.2)
    return classifier

  return make


def _tokens():
  """Rows that end with the EOS, and padding; and how long each is."""
  lengths = np.array([9, 4, 12])
  tokens = np.random.default_rng(0).integers(10, 96, (3, 12))
  tokens[np.arange(3), lengths - 1] = EOS
  tokens[np.arange(12)[None] >= lengths[:, None]] = PAD
  return tokens, lengths


def _rewards(definition, params, tokens, last):
  model = bind(definition, params)
  attend = padded_attention(jnp.asarray(tokens != PAD))
  position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = model(jnp.asarray(tokens, jnp.int32), position, attend)
  return model.score(hidden)[np.arange(len(tokens)), last]


def _theirs(folder, tokens):
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder
  )
  mask = torch.tensor(tokens != PAD)
  with torch.no_grad():
    return model(torch.tensor(tokens), attention_mask=mask).logits.numpy()


@pytest.mark.parametrize("tied", [True, False])
def test_rewards_there_and_back(make_classifier, folder_of, tmp_path, tied):
  folder = folder_of(make_classifier(tie_word_embeddings=tied))
  tokens, lengths = _tokens()
  theirs = _theirs(folder, tokens)
  config = huggingface.read_config(folder)
  definition = define(config, dtype="float32", rewards=AXES)
  params = huggingface.load_params(folder, definition)
  ours = _rewards(definition, params, tokens, lengths - 1)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)  # measured: 5e-7
  before = _rewards(definition, params, tokens, lengths - 2)
  assert np.abs(before - theirs).min() > 1e-3
  export = tmp_path / "export"
  pad = (PAD, "<pad>")
  huggingface.save_pretrained(export, definition, params, pad_token=pad)
  np.testing.assert_allclose(_theirs(export, tokens), theirs, atol=1e-6)
  told = json.loads((export / "config.json").read_text())
  assert heads.reward_axes(told, (), "config.json") == AXES
  assert not (export / "generation_config.json").exists()


def test_a_head_that_pads_with_the_eos_reads_another_token(
  make_classifier, folder_of
):
  """Why exports name another token to pad with."""
  classifier = make_classifier()
  tokens, _ = _tokens()
  theirs = _theirs(folder_of(classifier), tokens[2:])
  classifier.config.pad_token_id = EOS
  other = _theirs(folder_of(classifier), tokens[2:])
  assert np.abs(other - theirs).max() > 0.01


def test_a_new_head_is_zero(make_torch, folder_of):
  """Of a language model, whose own head is left in its file."""
  folder = folder_of(make_torch(tie_word_embeddings=False))
  config = huggingface.read_config(folder)
  definition = define(config, dtype="float32", rewards=("reward",))
  params = huggingface.load_params(folder, definition)
  assert params.keys() == {"embed", "layers", "norm", "score"}
  assert params["score"]["kernel"].shape == (32, 1)
  assert not params["score"]["kernel"].any()
  random = init_params(definition, jax.random.key(0))
  assert jax.tree.map(jnp.shape, random) == jax.tree.map(jnp.shape, params)
  assert not random["score"]["kernel"].any()


def test_a_reward_model_is_no_language_model(make_classifier, folder_of):
  folder = folder_of(make_classifier(tie_word_embeddings=True))
  definition = define(huggingface.read_config(folder), dtype="float32")
  with pytest.raises(UserError, match=r"score\.weight is left over"):
    huggingface.load_params(folder, definition)


@pytest.mark.parametrize(
  ("labels", "asked", "told"),
  [
    ({"0": "helpful"}, ("kind",), r"has the rewards \('helpful',\)"),
    ({"0": "LABEL_0"}, ("a", "b"), r"is \('a', 'b'\), and config.json has"),
    ({}, ("a", "a"), "a name of its own"),
  ],
)
def test_other_axes_are_refused(labels, asked, told):
  given = {
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": labels,
  }
  with pytest.raises(UserError, match=told):
    heads.reward_axes(given, asked, "config.json")


def test_names_of_axes():
  given = {
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": {"1": "LABEL_1", "0": "LABEL_0"},
  }
  named = heads.reward_axes(given, ("a", "b"), "config.json")
  assert named == ("a", "b")
  assert heads.reward_axes(given, (), "") == ("LABEL_0", "LABEL_1")
  language = {"architectures": ["LlamaForCausalLM"], "id2label": {"0": "x"}}
  assert heads.reward_axes(language, (), "") == ("reward",)
  assert heads.reward_axes({}, ("a",), "") == ("a",)


def test_padding_never_ends_a_response():
  ids = {"<pad>": 3, "</s>": 2, "<unk>": 0, "<s>": 1}
  tokens = {"unk_token": "<unk>", "bos_token": "<s>"}

  def pad(eos_ids, **given):
    tokenizer = SimpleNamespace(
      convert_tokens_to_ids=ids.get, **{**tokens, **given}
    )
    return heads.padding(tokenizer, eos_ids)

  assert pad([2], pad_token="<pad>") == (3, "<pad>")
  assert pad([2], pad_token="</s>") == (0, "<unk>")
  assert pad([2, 3], pad_token="<pad>", unk_token=None) == (1, "<s>")
  assert pad([2], pad_token=None, unk_token=None, bos_token=None) is None
