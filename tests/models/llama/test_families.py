"""Every family against transformers, with all that is special about it."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpref import losses
from jaxpref.config import Lora
from jaxpref.fit.objectives import score_text
from jaxpref.models.build import bind, define
from jaxpref.models.huggingface import (
  load_params,
  read_config,
  save_pretrained,
)
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.families import FULL, SLIDING
from jaxpref.models.llama.weights import weights
from jaxpref.ops.attention import padded_attention
from jaxpref.ops.rope import Rope
from jaxpref.types import Comparisons, Lists, Slots, TextBatch

# Sizes are the same for all where they can be, so that operations are compiled
# once. Caps and scales bite, bases of RoPE turn within a few tokens, and the
# number of layers is no multiple of the period.
COMMON = {"head_dim": 16, "pad_token_id": None, "eos_token_id": [1, 95]}
WINDOW = 5
QWEN = {
  "use_sliding_window": True,
  "sliding_window": WINDOW,
  "max_window_layers": 1,
}
GEMMA = {
  "attention_bias": True,
  "query_pre_attn_scalar": 5,
  "sliding_window": WINDOW,
  "final_logit_softcapping": 3.0,
  "tie_word_embeddings": True,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
TWO_ROPES = {
  FULL: {"rope_type": "linear", "rope_theta": 90.0, "factor": 2.0},
  SLIDING: {"rope_type": "default", "rope_theta": 10.0},
}
CASES: dict[str, dict[str, Any]] = {
  "llama": {
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "rope_parameters": LLAMA3,
  },
  "mistral": {"sliding_window": WINDOW},
  "qwen2": QWEN,
  "qwen3": {**QWEN, "attention_bias": True},
  "gemma2": {
    **GEMMA,
    "num_hidden_layers": 3,
    "attn_logit_softcapping": 2.0,
  },
  "gemma3_text": {
    **GEMMA,
    "num_hidden_layers": 4,
    "sliding_window_pattern": 3,
    "rope_parameters": TWO_ROPES,
  },
}


class Case(NamedTuple):
  name: str
  torch: Any
  config: LlamaConfig
  params: dict[str, Any]


@pytest.fixture(scope="module", params=CASES)
def case(request, make_torch, tmp_path_factory):
  model = make_torch(request.param, **COMMON, **CASES[request.param])
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  config = read_config(folder)
  params = load_params(folder, define(config, dtype="float32"))
  return Case(request.param, model, config, params)


def _inputs():
  tokens = np.random.default_rng(0).integers(3, 95, (3, 16))
  valid = np.ones((3, 16), bool)
  valid[1, :4] = valid[2, 9:] = False  # padded on the left, on the right
  position = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
  return tokens, valid, position


def _hidden(model, tokens, valid, position):
  tokens, position = (jnp.asarray(x, jnp.int32) for x in (tokens, position))
  return model(tokens, position, padded_attention(jnp.asarray(valid)))[0]


def _logits(config, params):
  model = bind(define(config, dtype="float32", remat=""), params)
  with jax.disable_jit():
    hidden = _hidden(model, *_inputs())
    return np.asarray(model.cap(hidden @ model.head_kernel()))


def _torch_logits(model):
  tokens, valid, position = (torch.tensor(x) for x in _inputs())
  mask = valid.long()
  return model(tokens, attention_mask=mask, position_ids=position).logits


def _without(params, *names):
  """Parameters but for those that are, or belong to, one of the names."""
  return {
    key: _without(value, *names) if isinstance(value, dict) else value
    for key, value in params.items()
    if key not in names
  }


def _set(**changes) -> Callable[..., Any]:
  return lambda config, params: (
    dataclasses.replace(config, **changes),
    params,
  )


def _drop(*names, **changes) -> Callable[..., Any]:
  return lambda config, params: (
    dataclasses.replace(config, **changes),
    _without(params, *names),
  )


def _rope(**changes) -> Callable[..., Any]:
  def change(config, params):
    rope = dataclasses.replace(config.rope_parameters, **changes)
    return dataclasses.replace(config, rope_parameters=rope), params

  return change


WIDER, NARROWER = _set(sliding_window=6), _set(sliding_window=4)
NO_QK_NORM = _drop("q_norm", "k_norm", qk_norm=False)
GEMMA_MISTAKES = {
  "window": WIDER,
  "order of windows": _set(layer_types=(FULL, SLIDING)),
  "norm's offset": _set(norm_offset=False),
  "post-norms": _drop("attention_out_norm", "mlp_out_norm", post_norms=False),
  "scale of embeddings": _set(scale_embeddings=False),
  "scale of queries": _set(query_pre_attn_scalar=0),
  "cap of logits": _set(final_logit_softcapping=0.0),
  "exact GeGLU": _set(hidden_act="gelu"),
}
MISTAKES = {
  "llama": {
    "biases": _drop("bias", qkv_bias=False, o_bias=False, mlp_bias=False),
    "scaling": _rope(rope_type="default"),
    "base": _rope(rope_theta=550.0),
    "eps": _set(rms_norm_eps=1e-2),
  },
  "mistral": {
    "window": WIDER,
    "window too": NARROWER,
    "no window": _set(layer_types=(FULL,)),
    "scale of queries": _set(query_pre_attn_scalar=8),
  },
  "qwen2": {
    "biases": _drop("bias", qkv_bias=False),
    "window": WIDER,
    "first window": _set(layer_types=(SLIDING,)),
  },
  "qwen3": {
    "norms of heads": NO_QK_NORM,
    "window": WIDER,
    "first window": _set(layer_types=(SLIDING, FULL)),
  },
  "gemma2": {
    **GEMMA_MISTAKES,
    "cap of attention": _set(attn_logit_softcapping=0.0),
  },
  "gemma3_text": {
    **GEMMA_MISTAKES,
    "norms of heads": NO_QK_NORM,
    "base of local layers": _set(local_rope_parameters=None),
    "base of global layers": _rope(rope_theta=10.0),
    "factor of global layers": _rope(factor=1.0),
    "factor of local layers": _set(
      local_rope_parameters=Rope("linear", 10.0, factor=2.0)
    ),
  },
}


def test_logits_match_transformers(case):
  _, valid, _ = _inputs()
  with torch.no_grad():
    expected = _torch_logits(case.torch).numpy()[valid]
  ours = _logits(case.config, case.params)
  assert np.isfinite(ours).all()
  # Measured: 7e-6 at most, with logits of up to 5.
  np.testing.assert_allclose(ours[valid], expected, atol=1e-4)
  for name, mistake in MISTAKES[case.name].items():
    wrong = _logits(*mistake(case.config, case.params))
    assert np.abs(wrong[valid] - expected).max() > 1e-3, name


# A packed row: a prompt, the chosen response, the rejected one.
PROMPT, CHOSEN, REJECTED = np.arange(5), np.arange(5, 12), np.arange(12, 16)
CHOSEN_WHOLE, REJECTED_WHOLE = np.r_[:12], np.r_[:5, 12:16]
REF = np.array([-30.0, -18.0], np.float32)


def _row():
  ids = np.random.default_rng(1).integers(3, 95, 16)
  position = np.r_[:12, 5:9]
  expand = np.zeros((1, 2, 12), np.int32)
  expand[0, 0], expand[0, 1, :9] = CHOSEN_WHOLE, REJECTED_WHOLE
  # The prompt's outputs are those of the first sequence.
  collapse = np.r_[:12, 12 + np.arange(5, 9)]
  responses = np.r_[CHOSEN, REJECTED]
  source = np.where(responses == 12, 4, responses - 1)
  arrays = (ids, position, collapse, source, ids[responses])
  ids, position, collapse, source, target = (
    jnp.asarray(x[None], jnp.int32) for x in arrays
  )
  none = jnp.zeros(0, jnp.int32)
  return TextBatch(
    tokens=ids,
    position=position,
    expand=(jnp.asarray(expand),),
    collapse=collapse,
    source=source,
    target=target,
    slot=jnp.asarray((responses >= 12)[None], jnp.int32),
    ref_token_logp=None,
    last=none,
    slots=Slots(none, none > 0, none, none > 0, none / 1.0),
    comparisons=Comparisons(none, none, none > 0, none / 1.0, none / 1.0),
    lists=Lists(none[None], none[None] > 0),
  )


def _loss(definition, params, batch):
  logp = score_text(definition, params, batch, head_block=4)
  slots = jax.nn.one_hot(batch.slot[0], 2)
  chosen, rejected = logp[0] @ slots - REF
  return losses.dpo(chosen, rejected, beta=0.1)


def _torch_loss(model):
  ids = np.asarray(_row().tokens)[0]
  ratios = []
  for whole, ref in zip((CHOSEN_WHOLE, REJECTED_WHOLE), REF, strict=True):
    tokens = torch.tensor(ids[whole], dtype=torch.long)[None]
    logp = model(tokens).logits.log_softmax(-1)[:, :-1]
    picked = logp.gather(-1, tokens[:, 1:, None])[0, :, 0]
    ratios.append(picked[len(PROMPT) - 1 :].sum() - float(ref))
  return -torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1]))


def _errors(case, grads):
  """Of each tensor, the largest error over the largest entry."""
  theirs = dict(case.torch.named_parameters())
  errors = {}
  for weight in weights(case.config):
    leaf = grads
    for key in weight.path:
      leaf = leaf[key]
    leaves = np.asarray(leaf) if weight.stacked else np.asarray(leaf)[None]
    for layer, array in enumerate(leaves):
      name = weight.name.format(layer)
      expected = theirs[name].grad.numpy()
      error = np.abs(weight.theirs(array) - expected).max()
      errors[name] = error / np.abs(expected).max()
  return errors


def test_gradients_of_dpo_match_transformers(case):
  """Of every weight, on a packed row."""
  definition = define(case.config, dtype="float32")
  program = jax.jit(
    jax.value_and_grad(functools.partial(_loss, definition)),
    # Compiling is what takes long here.
    compiler_options={"xla_backend_optimization_level": 0},
  )
  loss, grads = program(case.params, _row())
  case.torch.zero_grad()
  expected = _torch_loss(case.torch)
  expected.backward()
  errors = _errors(case, grads)
  np.testing.assert_allclose(loss, expected.item(), atol=1e-5)
  assert max(errors.values()) < 1e-3  # measured: 4e-6
  # Responses taken for each other.
  batch = _row()
  swapped = dataclasses.replace(batch, slot=1 - batch.slot)
  _, wrong = program(case.params, swapped)
  assert min(_errors(case, wrong).values()) > 0.1


def test_an_export_is_the_same_model(case, tmp_path):
  definition = define(case.config, dtype="float32")
  save_pretrained(tmp_path / "out", definition, case.params)
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", attn_implementation="eager"
  )
  assert type(again) is type(case.torch)
  assert read_config(tmp_path / "out") == case.config
  with torch.no_grad():
    ours, expected = _torch_logits(again), _torch_logits(case.torch)
  assert torch.equal(ours, expected)
  theirs = again.config.to_dict()
  for key, value in case.torch.config.to_dict().items():
    if key not in ("architectures", "_name_or_path"):
      assert theirs[key] == value, key


def test_adapters_go_to_every_linear_layer(case):
  settings = Lora(rank=2)
  definition = define(case.config, dtype="float32", lora=settings)
  assert len(definition.targets) == 7
  q = definition.shapes["layers"]["attention"]["q"]["lora_a"]
  assert q.shape == (case.config.num_hidden_layers, 32, 2)
