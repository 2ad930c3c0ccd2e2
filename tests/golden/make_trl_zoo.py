"""Writes trl_zoo.json: losses that TRL 1.16 has beside those of pairs.

  python tests/golden/make_trl_zoo.py

TRL's own methods run, in float64, on stubs that hold the settings they read:
`cpo_loss` and `odds_ratio_loss`, and `get_batch_loss_metrics` around them for
the whole loss with its likelihood term; KTOTrainer's and DPOTrainer's
`_compute_loss` on a stub of a model that returns given token log-probs. The
last two take the mean over a batch, hence batches of one entry.
"""

from collections import defaultdict
import json
import pathlib
from types import SimpleNamespace

import torch
import trl
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

GENERATOR = torch.Generator().manual_seed(0)


def main() -> None:
  assert trl.__version__.startswith("1.16"), trl.__version__
  torch.set_default_dtype(torch.float64)  # of the scalars that TRL makes
  cases = [
    _reference_free("cpo", 8.0, loss_type="sigmoid", beta=beta, smoothing=s)
    for beta in (0.1, 0.5)
    for s in (0.0, 0.1)
  ]
  cases += [
    _reference_free("simpo", 1.0, beta=beta, simpo_gamma=gamma, smoothing=s)
    for beta, gamma in ((0.1, 0.5), (2.0, 0.5), (10.0, 3.0))
    for s in (0.0, 0.1)
  ]
  cases += [_odds_ratio(beta) for beta in (0.1, 1.0)]
  cases += [
    _kto("kto", beta, weights, shift)
    for beta in (0.1, 0.5)
    for weights in ((1.0, 1.0), (1.33, 0.7))
    for shift in (0.5, -0.5)
  ]
  cases += [_kto("apo_zero_unpaired", beta, (1.0, 1.0), 0.0) for beta in (0.1,)]
  cases += [_token_level("ld_dpo", ld_alpha=alpha) for alpha in (0.0, 0.3, 1.0)]
  cases += [_token_level("wpo", use_weighting=True)]
  cases += [_whole("cpo"), _whole("simpo"), _whole("orpo")]
  path = pathlib.Path(__file__).with_name("trl_zoo.json")
  path.write_text("[" + ",\n".join(map(json.dumps, cases)) + "]\n")


def _case(name, options, inputs, losses, total, wrt):
  """`wrt` names the inputs that losses' sum `total` is differentiated by."""
  total.backward()
  return {
    "name": name,
    "options": options,
    "inputs": {key: x.detach().tolist() for key, x in inputs.items()},
    "loss": losses,
    "grads": {key: inputs[key].grad.tolist() for key in wrt},
  }


def _exact(x):
  """Float64 of what float32 callers will pass."""
  return x.float().double()


def _random(*shape, size=1.0):
  return _exact(size * torch.randn(*shape, generator=GENERATOR))


def _reference_free(name, size, *, smoothing, loss_type="simpo", **settings):
  logps = -_random(2, 10, size=size).abs()
  chosen, rejected = (x.clone().requires_grad_() for x in logps)
  trainer = _cpo_trainer(
    loss_type=loss_type, label_smoothing=smoothing, **settings
  )
  losses, _, _ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
  options = {"beta": settings["beta"], "label_smoothing": smoothing}
  if name == "simpo":
    options["gamma"] = settings["simpo_gamma"]
  word = "mean_logp" if name == "simpo" else "logp"
  inputs = {f"chosen_{word}": chosen, f"rejected_{word}": rejected}
  return _case(name, options, inputs, losses.tolist(), losses.sum(), inputs)


def _odds_ratio(beta):
  # From likely to hardly possible.
  logps = -torch.exp(_random(2, 10, size=2.0))
  chosen, rejected = (_exact(x).requires_grad_() for x in logps)
  trainer = SimpleNamespace(beta=beta, accelerator=_accelerator())
  kept, *_ = ORPOTrainer.odds_ratio_loss(
    trainer, _Float64(chosen), _Float64(rejected)
  )
  losses = -kept  # which TRL subtracts
  inputs = {"chosen_mean_logp": chosen, "rejected_mean_logp": rejected}
  return _case(
    "orpo", {"beta": beta}, inputs, losses.tolist(), losses.sum(), inputs
  )


class _Float64:
  """A tensor that stays float64 where TRL asks for float32."""

  def __init__(self, x):
    self.x = x

  def float(self):
    return self.x

  def to(self, _):
    return self.x


def _kto(name, beta, weights, shift):
  logratio = _random(8, size=5.0).requires_grad_()
  desirable = torch.rand(8, generator=GENERATOR) < 0.5
  mismatched = _random(6, size=2.0)
  mismatched = _exact(mismatched - mismatched.mean() + shift)
  losses = []
  for i in range(8):
    trainer = _kto_trainer(name, beta, weights, mismatched)
    batch = {
      "input_ids": torch.zeros(1, 2, dtype=torch.long),
      "completion_mask": torch.tensor([[0, 1]]),
      "attention_mask": torch.ones(1, 2),
      "label": desirable[i : i + 1],
      "ref_logps": torch.zeros(1),
      "ref_KL_logps": torch.zeros_like(mismatched),
    }
    model = _Model(logratio[i].reshape(1, 1))
    losses.append(KTOTrainer._compute_loss(trainer, model, batch, False))
  inputs = {
    "logratio": logratio,
    "desirable": desirable,
    "mismatched_logratio": mismatched,
  }
  options = {"beta": beta}
  if name == "kto":
    options |= dict(
      zip(("desirable_weight", "undesirable_weight"), weights, strict=True)
    )
  values = [x.item() for x in losses]
  return _case(name, options, inputs, values, sum(losses), ["logratio"])


def _token_level(name, *, ld_alpha=None, use_weighting=False, beta=0.1):
  pairs, longest = 6, 7
  shape = 2, pairs, longest  # side, pair, token
  lengths = torch.randint(1, longest + 1, shape[:2], generator=GENERATOR)
  mask = torch.arange(longest) < lengths[..., None]
  outside = lambda x: torch.where(mask, x, 0.0)
  leaf = (-_random(*shape).abs()).requires_grad_()
  policy = outside(leaf)  # as TRL has it: 0 where there is no label
  reference = outside(-_random(*shape).abs())
  sum_sq = outside(-_random(*shape).abs())
  losses = []
  for i in range(pairs):
    rows = mask[:, i].long()
    batch = {
      "input_ids": torch.zeros(2, longest + 1, dtype=torch.long),
      "attention_mask": torch.ones(2, longest + 1),
      # A prompt of one token stands before each response.
      "completion_mask": torch.cat([torch.zeros(2, 1).long(), rows], 1),
    }
    trainer = _dpo_trainer(beta, ld_alpha, use_weighting)
    trainer.ref_model = _Model(reference[:, i])
    trainer.precompute_ref_logps = False
    model = _Model(policy[:, i], sum_sq[:, i])
    losses.append(DPOTrainer._compute_loss(trainer, model, batch, False))
  inputs = {
    "token_logp": leaf,
    "ref_token_logp": reference,
    "token_log_sum_sq": sum_sq,
    "mask": mask,
  }
  options = {"beta": beta} | ({} if ld_alpha is None else {"alpha": ld_alpha})
  values = [x.item() for x in losses]
  return _case(name, options, inputs, values, sum(losses), ["token_logp"])


def _whole(name):
  """The loss of a batch with its likelihood term, from logits."""
  pairs, prompt, longest, vocabulary = 3, 2, 6, 5
  shape = 2 * pairs, longest
  ids = torch.randint(vocabulary, shape, generator=GENERATOR)
  lengths = torch.randint(
    prompt + 1, longest + 1, shape[:1], generator=GENERATOR
  )
  inside = torch.arange(longest) < lengths[:, None]
  labels = torch.where(inside, ids, -100)
  labels[:, :prompt] = -100
  logits = _random(*shape, vocabulary)
  if name == "orpo":
    trainer, cls = SimpleNamespace(beta=0.1, padding_value=0), ORPOTrainer
    trainer.odds_ratio_loss = lambda *logps: ORPOTrainer.odds_ratio_loss(
      trainer, *map(_Float64, logps)
    )
  else:
    types = {"cpo": "sigmoid", "simpo": "simpo"}
    trainer, cls = _cpo_trainer(loss_type=types[name], beta=0.1), CPOTrainer
    trainer.pad_token_id = 0
    trainer.cpo_alpha = 1.0  # TRL's default
    trainer.cpo_loss = lambda *logps: CPOTrainer.cpo_loss(trainer, *logps)
  trainer.accelerator = _accelerator()
  trainer.is_encoder_decoder = trainer.aux_loss_enabled = False
  trainer.concatenated_inputs = cls.concatenated_inputs
  trainer.get_batch_logps = cls.get_batch_logps
  trainer.concatenated_forward = lambda *x: cls.concatenated_forward(
    trainer, *x
  )
  batch = {}
  for word, rows in (("chosen", slice(pairs)), ("rejected", slice(pairs, 99))):
    batch[f"{word}_input_ids"] = ids[rows]
    batch[f"{word}_attention_mask"] = inside[rows].long()
    batch[f"{word}_labels"] = labels[rows]
  model = lambda *_, **__: SimpleNamespace(logits=logits)
  loss, _ = cls.get_batch_loss_metrics(trainer, model, batch)
  token_logp = logits[:, :-1].log_softmax(-1)
  token_logp = token_logp.gather(-1, ids[:, 1:, None])[..., 0]
  return {
    "name": f"whole {name}",
    # [chosen then rejected, token]; a response's tokens, and the prompt's too.
    "token_logp": token_logp.tolist(),
    "mask": (labels[:, 1:] != -100).tolist(),
    "mask_with_prompt": inside[:, 1:].tolist(),
    "loss": loss.item(),
  }


class _Model:
  """What a trainer sees of a model with these token log-probs."""

  def __init__(self, token_logp, log_sum_sq=None):
    nothing = torch.zeros_like(token_logp)
    self.outputs = SimpleNamespace(
      log_probs=token_logp,
      log_sum_sq_probs=log_sum_sq,
      entropy=nothing,
      mean_logits=nothing,
      is_top1=nothing.bool(),
    )

  def __call__(self, **_):
    return self.outputs


def _accelerator():
  alone = lambda x: x
  return SimpleNamespace(device="cpu", gather=alone, gather_for_metrics=alone)


def _trainer(**settings):
  return SimpleNamespace(
    model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
    args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    accelerator=_accelerator(),
    aux_loss_enabled=False,
    precompute_ref_logps=True,
    _metrics=defaultdict(lambda: defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
    **settings,
  )


def _cpo_trainer(**settings):
  defaults = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5}
  return SimpleNamespace(accelerator=_accelerator(), **(defaults | settings))


def _kto_trainer(name, beta, weights, mismatched):
  return _trainer(
    loss_type=name,
    beta=beta,
    desirable_weight=weights[0],
    undesirable_weight=weights[1],
    calculate_KL=name == "kto",
    _compute_kl_logps=lambda *_: mismatched,
  )


def _dpo_trainer(beta, ld_alpha, use_weighting):
  return _trainer(
    beta=beta,
    ld_alpha=ld_alpha,
    use_weighting=use_weighting,
    label_smoothing=0.0,
    loss_types=["sigmoid"],
    loss_weights=[1.0],
    f_divergence_type="reverse_kl",
  )


if __name__ == "__main__":
  main()
