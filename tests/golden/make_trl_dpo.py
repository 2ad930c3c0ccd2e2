"""Writes trl_dpo.json: losses and gradients of TRL 1.16's DPOTrainer.

  python tests/golden/make_trl_dpo.py

The trainer's own `_compute_loss` runs, on a stub that holds the settings it
reads and a stub of a model that returns given token log-probs. It takes the
mean over a batch, hence batches of one pair; `aot` and `aot_unpaired`, which
sort over the batch, get whole ones and give a mean. All is float64, except
under an alpha divergence, which TRL refuses in float64, and where the trainer
overflows in float32 ("far", NaN and Infinity).

Token log-probs are multiples of 1/1024, so that their sums are exact in
float32 too.
"""

from collections import defaultdict
import json
import pathlib
from types import SimpleNamespace

import torch
import trl
from trl.trainer.dpo_trainer import DPOTrainer

PAIRS = 8
SIZES = (0.2, 3.0)  # of the tokens' log-ratios
BETAS = (0.1, 0.5)
# TRL's name, and what else it is given.
CASES = [
  ("sigmoid", {}),
  ("sigmoid", {"label_smoothing": 0.1}),
  ("sigmoid", {"f_divergence_type": "forward_kl"}),
  ("sigmoid", {"f_divergence_type": "js_divergence"}),
  *(
    ("sigmoid", {"f_divergence_type": "alpha_divergence", "alpha": alpha})
    for alpha in (0.3, 0.5, 1.0, 1.5)
  ),
  ("sigmoid_norm", {}),
  ("hinge", {}),
  ("ipo", {}),
  ("exo_pair", {"label_smoothing": 1e-3}),
  ("exo_pair", {"label_smoothing": 0.1}),
  ("robust", {"label_smoothing": 0.0}),
  ("robust", {"label_smoothing": 0.1}),
  ("nca_pair", {}),
  ("bco_pair", {}),
  ("sppo_hard", {}),
  ("aot", {"label_smoothing": 0.0}),
  ("aot", {"label_smoothing": 0.1}),
  ("aot_unpaired", {"label_smoothing": 0.0}),
  ("aot_unpaired", {"label_smoothing": 0.1}),
  ("apo_zero", {}),
  ("apo_down", {}),
  ("discopop", {"tau": 0.05}),
  ("discopop", {"tau": 0.5}),
]
# In float32, with log-ratios of hundreds of nats.
FAR = [
  ("sigmoid", {"f_divergence_type": "forward_kl", "far": True}),
  ("discopop", {"tau": 0.05, "far": True}),
]


def main() -> None:
  assert trl.__version__.startswith("1.16"), trl.__version__
  # TRL makes scalars of the default dtype.
  torch.set_default_dtype(torch.float64)
  cases = [
    _case(name, options, beta, size)
    for name, options in CASES
    for beta in BETAS
    for size in SIZES
  ]
  cases += [_case(name, options, 0.5, 300.0) for name, options in FAR]
  lines = map(json.dumps, cases)
  path = pathlib.Path(__file__).with_name("trl_dpo.json")
  path.write_text("[" + ",\n".join(lines) + "]\n")


def _case(name, options, beta, size):
  generator = torch.Generator().manual_seed(0)
  lengths = torch.randint(1, 9, (2, PAIRS), generator=generator)  # by side
  ratios = _tokens(lengths, size, generator)
  reference = -_tokens(lengths, 1.0, generator).abs()
  dtype = torch.float32 if {"alpha", "far"} & set(options) else torch.float64
  policy = (reference + ratios).to(dtype).requires_grad_()
  reference = reference.to(dtype)
  batch = policy, reference, lengths
  if name.startswith("aot"):
    loss = _loss(name, options, beta, *batch)
    losses, total = [loss.item()], loss * PAIRS
  else:
    pairs = [[x[:, i : i + 1] for x in batch] for i in range(PAIRS)]
    each = [_loss(name, options, beta, *pair) for pair in pairs]
    losses, total = [loss.item() for loss in each], sum(each)
  total.backward()
  sums, ratios = policy.detach().sum(-1), (policy - reference).detach().sum(-1)
  return {
    "name": name,
    "options": {"beta": beta, **options},
    "lengths": lengths.tolist(),
    "logp": sums.tolist(),
    "logratio": ratios.tolist(),
    "loss": losses,
    # By a token's log-prob: the same for all tokens of a response.
    "grads": policy.grad[..., 0].tolist(),
  }


def _tokens(lengths, size, generator):
  """Random multiples of 1/1024 [side, pair, token], 0 behind the end."""
  longest = int(lengths.max())
  x = size * torch.randn(*lengths.shape, longest, generator=generator)
  inside = torch.arange(longest) < lengths[..., None]
  return torch.where(inside, torch.round(1024 * x) / 1024, 0.0)


def _loss(name, options, beta, policy, reference, lengths):
  """TRL's loss of a batch: all chosen responses, then all rejected ones."""
  policy, lengths = policy.flatten(0, 1), lengths.flatten()
  rows, longest = policy.shape
  # A prompt of one token stands before each response.
  mask = torch.arange(longest + 1) <= lengths[:, None]
  mask[:, 0] = False
  ref_chosen, ref_rejected = reference.sum(-1)
  inputs = {
    "input_ids": torch.zeros(rows, longest + 1, dtype=torch.long),
    "attention_mask": torch.ones(rows, longest + 1),
    "completion_mask": mask.long(),
    "ref_chosen_logps": ref_chosen,
    "ref_rejected_logps": ref_rejected,
  }
  return DPOTrainer._compute_loss(
    _trainer(name, options, beta), _Model(policy), inputs, return_outputs=False
  )


class _Model:
  """What the trainer sees of a model with these token log-probs."""

  def __init__(self, token_logp):
    nothing = torch.zeros_like(token_logp)
    self.outputs = SimpleNamespace(
      log_probs=token_logp,
      entropy=nothing,
      mean_logits=nothing,
      is_top1=nothing.bool(),
    )

  def __call__(self, **_):
    return self.outputs


def _trainer(name, options, beta):
  """What the loss reads of a trainer."""
  alone = lambda x: x
  return SimpleNamespace(
    model=SimpleNamespace(training=True),
    beta=beta,
    label_smoothing=options.get("label_smoothing", 0.0),
    loss_types=[name],
    loss_weights=[1.0],
    f_divergence_type=options.get("f_divergence_type", "reverse_kl"),
    f_alpha_divergence_coef=options.get("alpha", 0.5),
    args=SimpleNamespace(discopop_tau=options.get("tau", 0.05)),
    ld_alpha=None,
    use_weighting=False,
    aux_loss_enabled=False,
    precompute_ref_logps=True,
    accelerator=SimpleNamespace(
      device="cpu", gather=alone, gather_for_metrics=alone
    ),
    _metrics=defaultdict(lambda: defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
  )


if __name__ == "__main__":
  main()
