"""The text objective against one sequence a row and sums by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config, losses
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.loss import (
  SUPPLIED,
  compares,
  find_loss,
  needs_labels,
  needs_mismatched,
  needs_reference,
)
from jaxpref.fit.metrics import averages
from jaxpref.fit.objectives import score_text, text_objective
from jaxpref.models.build import bind, init_params
from jaxpref.ops.attention import padded_attention

BETA = 0.3


@pytest.fixture(scope="module")
def weighted(make_prepared):
  """Comparisons with weights and preferences; trees of one to three."""
  rng = np.random.default_rng(1)
  take = lambda n: rng.integers(1, 64, size=n).tolist()
  pairs = [
    [(0, 1)],
    [(1, 0, 0.5)],
    [(0, 1, 0.8, 2.0), (2, 0, 1.0, 0.25), (1, 2, 0.0)],
    [(1, 0, 1.0, 0.0)],
  ]
  shapes = [(5, [7, 3]), (1, [2, 2]), (6, [4, 9, 5]), (3, [1, 6])]
  return make_prepared(
    [
      (take(prompt), [take(n) for n in lengths], each)
      for (prompt, lengths), each in zip(shapes, pairs, strict=True)
    ]
  )


@pytest.fixture(scope="module")
def labelled(weighted):
  """The same, with answers to other prompts, as every loss takes them."""
  return weighted.with_mismatched(4, 64)


@pytest.fixture(scope="module")
def models(definition):
  return [init_params(definition, jax.random.key(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def plain(definition, models, weighted):
  """Log-probs of each response's tokens, by model: a sequence a row."""
  data = weighted
  prompts = np.repeat(np.arange(len(data)), np.diff(data.first_response))
  sequences = [
    [*data.prompt(i), *data.response(j)] for j, i in enumerate(prompts)
  ]
  size = max(map(len, sequences))
  tokens = np.zeros((len(sequences), size), np.int32)
  for row, sequence in zip(tokens, sequences, strict=True):
    row[: len(sequence)] = sequence
  valid = np.arange(size)[None] < [[len(each)] for each in sequences]
  position = np.broadcast_to(np.arange(size, dtype=np.int32), tokens.shape)

  @jax.jit
  def score(params):
    model = bind(definition, params)
    attend = padded_attention(jnp.asarray(valid))
    hidden, _ = model(jnp.asarray(tokens), jnp.asarray(position), attend)
    logp = jax.nn.log_softmax(hidden @ model.head_kernel())[:, :-1]
    return jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]

  def responses(params):
    logp = np.asarray(score(params), np.float64)
    starts = data.prompt_lengths[prompts]
    return [
      row[start - 1 : len(sequence) - 1]
      for row, start, sequence in zip(logp, starts, sequences, strict=True)
    ]

  return [responses(params) for params in models]


def _micro_batch(data, **given):
  """The one micro-batch of a step that holds all of the data."""
  settings = {"batch_size": len(data), "rows": 2, "row_length": 64}
  steps = Steps(data, **{**settings, **given})
  assert steps.shape.micro_batches == 1
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), steps[0])
  packing = steps.packing(0)[0]
  numbers = [j for row in packing[0] for p in row for j in p.responses]
  return batch, numbers


def _run(definition, models, batch, loss, **options):
  """(term, metrics), with the second model as the reference."""
  settings = config.Loss(name=loss, options=options)
  objective = text_objective(definition, settings, head_block=8)
  live = batch.ref_token_logp is None and loss != "sft"
  frozen = {"reference": models[1]} if live else {}
  terms, state, metrics = jax.jit(objective)(
    {"policy": models[0]}, frozen, {}, batch, jax.random.key(0)
  )
  assert state == {}
  return terms["loss"], metrics


@pytest.mark.parametrize("given", [{}, {"share_prompts": False}],
                         ids=["shared", "repeated"])  # fmt: skip
def test_packed_log_probs_are_those_of_plain_sequences(
  definition, models, weighted, plain, given
):
  batch, numbers = _micro_batch(weighted, **given)
  score = jax.jit(functools.partial(score_text, definition, head_block=8))
  logp = np.asarray(score(models[0], batch))
  for slot, number in enumerate(numbers):
    # Measured: 3e-6 nats of up to 9.
    np.testing.assert_allclose(
      logp[np.asarray(batch.slot) == slot], plain[0][number], atol=2e-5
    )
  assert min(map(np.min, plain[0])) < -5


def _by_hand(data, plain, values_of):
  """Σ weight (p loss + (1 - p) loss of the swapped pair), and how many."""
  total = 0.0
  for c in range(len(data.better)):
    pair = [values_of(*(each[j] for each in plain)) for j in
            (data.better[c], data.worse[c])]  # fmt: skip
    p = float(data.preference[c])
    soft = p * _loss(*pair) + (1 - p) * _loss(*pair[::-1])
    total += float(data.weight[c]) * soft
  return total, len(data.better)


def _loss(chosen, rejected):
  return math.log1p(math.exp(-BETA * (chosen - rejected)))


def test_dpo_by_hand(definition, models, weighted, plain):
  """Weights scale, valid counts: six comparisons, one of them of weight 0."""
  batch, _ = _micro_batch(weighted)
  term, _ = _run(definition, models, batch, "dpo", beta=BETA)
  ratio = lambda policy, reference: float(np.sum(policy - reference))
  total, count = _by_hand(weighted, plain, ratio)
  assert count == term.count == 6
  # Measured: 1e-6 of 17.
  np.testing.assert_allclose(term.total, total, rtol=1e-5)


def test_ipo_takes_means(definition, models, weighted, plain, monkeypatch):
  batch, _ = _micro_batch(weighted)
  term, _ = _run(definition, models, batch, "ipo", beta=BETA)
  target = 1 / (2 * BETA)
  ipo = lambda chosen, rejected: (chosen - rejected - target) ** 2
  monkeypatch.setitem(globals(), "_loss", ipo)
  mean = lambda policy, reference: float(np.mean(policy - reference))
  total, _ = _by_hand(weighted, plain, mean)
  np.testing.assert_allclose(term.total, total, rtol=1e-5)
  summed, _ = _by_hand(weighted, plain, lambda p, r: float(np.sum(p - r)))
  assert abs(summed - total) > 1  # so that sums would not pass


def test_sft_trains_on_what_is_not_worse(definition, models, weighted, plain):
  """By tokens, and on all responses where nothing is left out."""
  for compare in (False, True):
    given = {} if compare else {"kept": weighted.imitated}
    batch, numbers = _micro_batch(weighted, **given)
    worse = weighted.worse[weighted.preference != 0.5]
    kept = sorted(set(range(9)) - set(worse.tolist()))
    assert sorted(numbers) == (list(range(9)) if compare else kept)
    term, metrics = _run(definition, models, batch, "sft")
    assert not metrics
    assert term.count == sum(len(plain[0][j]) for j in numbers)
    total = -sum(plain[0][j].sum() for j in numbers)
    np.testing.assert_allclose(term.total, total, rtol=1e-5)


def test_metrics_by_hand(definition, models, weighted, plain):
  batch, _ = _micro_batch(weighted)
  _, metrics = _run(definition, models, batch, "dpo", beta=BETA)
  policy, reference = ([each.sum() for each in model] for model in plain)
  ratio = BETA * (np.array(policy) - reference)
  told = weighted.preference != 0.5  # one of six is a tie: nothing is better
  better, worse = weighted.better[told], weighted.worse[told]
  logp = np.array(policy)
  expected = {
    "logps/chosen": logp[better],
    "logps/rejected": logp[worse],
    "logps/accuracies": logp[better] > logp[worse],
    "rewards/chosen": ratio[better],
    "rewards/rejected": ratio[worse],
    "rewards/margins": ratio[better] - ratio[worse],
    "rewards/accuracies": ratio[better] > ratio[worse],
    "rewards/ties": np.zeros(5),
    "rewards/both_fell": (ratio[better] < 0) & (ratio[worse] < 0),
  }
  assert metrics.keys() == expected.keys()
  for name, values in expected.items():
    assert metrics[name].count == 5, name
    np.testing.assert_allclose(
      metrics[name].total, values.sum(), rtol=1e-5, err_msg=name
    )
  assert 0 < metrics["rewards/accuracies"].total < 5


def test_unpaired_losses_count_the_pairs_they_know(
  definition, models, weighted, labelled
):
  """Beside means over what is desirable, and what is not."""
  _, pairs = _run(
    definition, models, _micro_batch(weighted)[0], "dpo", beta=BETA
  )
  _, told = _run(
    definition, models, _micro_batch(labelled)[0], "kto", beta=BETA
  )
  for name in ("logps/accuracies", "rewards/accuracies", "rewards/ties"):
    assert told[name] == pairs[name]
  assert told["rewards/accuracies"].count == 5
  assert told["rewards/chosen"].count < 6
  unpaired = dataclasses.replace(
    (batch := _micro_batch(labelled)[0]),
    comparisons=dataclasses.replace(
      batch.comparisons, valid=jnp.zeros_like(batch.comparisons.valid)
    ),
  )
  _, told = _run(definition, models, unpaired, "kto", beta=BETA)
  assert "rewards/accuracies" not in averages(told)
  assert "rewards/margins" in averages(told)


def test_ties_are_not_accurate(definition, models, weighted):
  """Policy and reference alike: every reward is 0, no pair is right."""
  batch, _ = _micro_batch(weighted)
  same = [models[0], models[0]]
  _, metrics = _run(definition, same, batch, "dpo", beta=BETA)
  assert metrics["rewards/accuracies"].total == 0
  assert metrics["rewards/ties"].total == metrics["rewards/ties"].count == 5


def test_metrics_without_a_reference(definition, models, weighted):
  """A cached reference serves as a live one, and needs no parameters."""
  batch, numbers = _micro_batch(weighted)
  score = functools.partial(score_text, definition, head_block=8)
  cached = dataclasses.replace(
    batch, ref_token_logp=jax.jit(score)(models[1], batch)
  )
  live = _run(definition, models, batch, "dpo", beta=BETA)
  told = _run(definition, models, cached, "dpo", beta=BETA)
  # Measured: equal in all bits but some metrics' last.
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), live, told
  )
  assert len(numbers) == 9


def test_what_stands_in_padding_is_harmless(definition, models, weighted):
  """NaN there changes neither the value nor any gradient."""
  batch, _ = _micro_batch(weighted)
  score = jax.jit(functools.partial(score_text, definition, head_block=8))
  cached = score(models[1], batch)
  padding = batch.slot == batch.slots.valid.shape[0]
  assert padding.any()
  settings = config.Loss(name="dpo", options={"beta": BETA})
  objective = text_objective(definition, settings, head_block=8)

  @jax.jit
  def loss_and_grads(batch):
    loss = lambda params: (
      objective({"policy": params}, {}, {}, batch, jax.random.key(0))[0][
        "loss"
      ].total
    )
    return jax.value_and_grad(loss)(models[0])

  clean = dataclasses.replace(batch, ref_token_logp=cached)
  planted = dataclasses.replace(
    batch,
    ref_token_logp=jnp.where(padding, jnp.nan, cached),
    target=jnp.where(padding, 7, batch.target),
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    loss_and_grads(clean),
    loss_and_grads(planted),
  )


def test_no_gradient_reaches_the_reference(definition, models, weighted):
  batch, _ = _micro_batch(weighted)
  settings = config.Loss(name="dpo", options={"beta": BETA})
  objective = text_objective(definition, settings, head_block=8)

  def loss(reference):
    roles = {"policy": models[0]}, {"reference": reference}
    return objective(*roles, {}, batch, jax.random.key(0))[0]["loss"].total

  grads = jax.jit(jax.grad(loss))(models[1])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


BY_NAME = [
  name
  for name in losses.names()
  if SUPPLIED.issuperset(losses.inputs(losses.get(name)))
]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_loss_of_log_probs_trains_by_name(definition, labelled, name):
  """Its value is finite and moves the policy; its rewards are told."""
  loss = losses.get(name)
  kept = labelled.imitated if name == "sft" else None
  batch, _ = _micro_batch(labelled, kept=kept)
  numbers = np.random.default_rng(0).normal(-2.0, 0.3, (2, *batch.slot.shape))
  values = tuple(jnp.asarray(numbers, jnp.float32))
  if not needs_reference(loss):
    values = values[0], None
  settings = config.Loss(name=name)
  objective = text_objective(definition, settings, head_block=8)

  @jax.jit
  def total(logp):
    terms, _, metrics = objective.terms({}, batch, (logp, values[1]))
    shares = [term.total / term.count for term in terms.values()]
    return sum(shares), metrics

  (value, metrics), grad = jax.value_and_grad(total, has_aux=True)(values[0])
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
  assert np.abs(grad).max() > 1e-5
  padding = batch.slot == batch.slots.valid.shape[0]
  assert not np.any(np.where(padding, grad, 0.0))
  told = {"rewards/chosen", "logps/chosen", "rewards/rejected"}
  assert told <= metrics.keys() or name == "sft"
  assert all(np.isfinite(term.total) for term in metrics.values())


def test_which_losses_compare():
  assert compares(losses.dpo)
  assert compares(losses.ipo)
  assert not compares(losses.sft)
  assert needs_reference(losses.dpo)
  assert needs_reference(losses.ipo)
  assert not needs_reference(losses.sft)
  assert not needs_reference(losses.orpo)
  assert not compares(losses.kto)
  assert [x for x in BY_NAME if needs_labels(losses.get(x))] == [
    "kto", "apo_zero_unpaired", "bco",
  ]  # fmt: skip
  assert [x for x in BY_NAME if needs_mismatched(losses.get(x))] == ["kto"]


def _settings(name, **options):
  return config.Loss(name=name, options=options)


def test_find_loss():
  assert find_loss(_settings("dpo", beta=0.1)) is losses.dpo
  assert find_loss(_settings("dpo", beta=1, label_smoothing=0.1)) is losses.dpo
  assert find_loss(_settings("sft")) is losses.sft


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (_settings("dpoo", beta=0.1), r"config\.loss\.name: .*'dpoo'; known: dpo"),
    (
      _settings("dpo", beta=0.1, label_smooth=0.1),
      r"loss\.label_smooth is not .* mean 'label_smoothing'",
    ),
    (_settings("ipo", beta=0.1, gamma=1), r"config\.loss\.gamma is not .*beta"),
    (_settings("sft", beta=0.1), r"loss\.beta is not an option .* has none"),
    (_settings("dpo", beta="0.1"), r"loss\.beta is '0\.1'; .* a number"),
    (_settings("dpo", beta=True), r"loss\.beta is True; it must be a number"),
    (
      _settings("dpo", beta=0.1, label_smoothing=0.5),
      r"'dpo' does not take .* label_smoothing is 0\.5; it must be at least 0",
    ),
    (_settings("ipo", beta=0), "'ipo' does not take these values: .*zero"),
    (_settings("dpo", beta=-1), r"loss\.beta is -1; it must be at least 0"),
    (_settings("kto", desirable_weight=-0.5), r"_weight is -0\.5; .* least 0"),
    (_settings("orpo", nll_weight=-1), r"nll_weight is -1; .* at least 0"),
    (_settings("dpo", beta=math.inf), r"loss\.beta is inf; it must be finite"),
    (_settings("dpo", nll_weight="a"), r"nll_weight is 'a'; .* a number"),
    (_settings("sft", nll_weight=1.0), r"loss\.nll_weight is not an option"),
    (_settings("dpo", damp=1.5), r"loss\.damp is 1\.5; it must be from 0"),
    (_settings("simpo", damp=0.5), r"loss\.damp is not an option"),
    (_settings("grpo"), r"'grpo' takes old_token_logp, advantage, mask, which"),
    (_settings("flow_dpo"), "time, which .* docs/losses.md"),
    # What the objective supplies is no option.
    (_settings("dpo", beta=0.1, chosen_logratio=1), "chosen_logratio is not"),
  ],
)
def test_find_loss_refuses(settings, message):
  with pytest.raises(UserError, match=message):
    find_loss(settings)
