"""Writes trl_rl.json: what TRL's own trainers make of rewards and log-probs.

  python tests/golden/make_trl_rl.py

Every number is TRL's: its methods run on a stand-in for the trainer, whose
model gives fixed numbers in place of logits. Inputs are float32 numbers held in
float64, so that ours can be given the very same.

- `RewardTrainer.compute_loss`, `GRPOTrainer._compute_loss` and
  `RLOOTrainer._compute_loss`: the loss of a batch and its gradient;
- `_generate_and_score_completions` of the last two, with sampling and scoring
  replaced: advantages (in float32: TRL builds a tensor of rewards itself);
- `get_soft_overlong_punishment`.
"""

import collections
import json
import pathlib
from types import SimpleNamespace
from unittest import mock

import torch
from trl.rewards import get_soft_overlong_punishment
from trl.trainer import grpo_trainer, reward_trainer, rloo_trainer

TOKENS = 7


def main() -> None:
  generator = torch.Generator().manual_seed(0)
  cases = [
    _reward(generator, margin=margin, center=center)
    for margin in (False, True)
    for center in (None, 0.01)
  ]
  token_cases = [
    {"loss_type": "grpo", "beta": 0.04},
    {"loss_type": "grpo", "beta": 0.0},
    {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28},
    {"loss_type": "dr_grpo", "beta": 0.0, "max_completion_length": 11},
    {
      "loss_type": "grpo",
      "beta": 0.0,
      "importance_sampling_level": "sequence",
      "epsilon_low": 0.05,
      "epsilon_high": 0.1,
    },
  ]
  for seed in range(3):
    generator = torch.Generator().manual_seed(seed)
    cases += [_grpo(generator, **options) for options in token_cases]
    cases.append(_rloo(generator, epsilon_low=0.2, epsilon_high=0.3))
    cases.append(_grpo_advantages(generator))
    cases.append(_rloo_advantages(generator))
  cases.append(_overlong())
  path = pathlib.Path(__file__).with_name("trl_rl.json")
  path.write_text("[" + ",\n".join(map(json.dumps, cases)) + "]\n")


def _numbers(generator, *shape, scale=1.0):
  numbers = scale * torch.randn(*shape, generator=generator)
  return numbers.double()


def _reward(generator, *, margin, center):
  rewards = _numbers(generator, 12, 1, scale=2.0).requires_grad_()
  inputs = {"attention_mask": torch.ones(12, 3)}
  if margin:
    inputs["margin"] = _numbers(generator, 6).abs()
  trainer = _trainer(args=SimpleNamespace(center_rewards_coefficient=center))
  model = lambda **_: SimpleNamespace(logits=rewards)
  kwargs = dict(inputs)  # the trainer adds to what it is given
  loss = reward_trainer.RewardTrainer.compute_loss(trainer, model, kwargs)
  loss.backward()
  return {
    "name": "bradley_terry_margin" if margin else "bradley_terry",
    "center": center or 0.0,
    "reward": rewards.flatten().tolist(),  # chosen, then rejected
    "margin": inputs["margin"].tolist() if margin else None,
    "loss": loss.item(),
    "grad": rewards.grad.flatten().tolist(),
  }


def _samples(generator):
  """Log-probs of 6 responses: some far from the old, of different lengths."""
  new = -_numbers(generator, 6, TOKENS).abs()
  old = (new + _numbers(generator, 6, TOKENS, scale=0.4).float()).float()
  ref = (new + _numbers(generator, 6, TOKENS, scale=0.4).float()).float()
  lengths = torch.tensor([7, 1, 4, 6, 2, 5])
  mask = torch.arange(TOKENS) < lengths[:, None]
  mask[3, 2] = False  # a token that a tool wrote
  return (
    new.requires_grad_(),
    old.double(),
    ref.double(),
    _numbers(generator, 6),
    mask,
  )


def _grpo(generator, **options):
  new, old, ref, advantages, mask = _samples(generator)
  settings = {
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "max_completion_length": TOKENS,
    **options,
  }
  trainer = _trainer(
    args=SimpleNamespace(
      delta=None, use_bias_correction_kl=False, steps_per_generation=1
    ),
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    use_vllm=False,
    _entropy_bonus_enabled=False,
    current_gradient_accumulation_steps=1,
    _get_per_token_logps_and_entropies=lambda *_, **__: (new, 0 * new, None),
    **settings,
  )
  inputs = _token_inputs(mask) | {
    "advantages": advantages,
    "old_per_token_logps": old,
    "ref_per_token_logps": ref,
    "num_items_in_batch": mask.sum(),
  }
  loss = grpo_trainer.GRPOTrainer._compute_loss(trainer, mock.Mock(), inputs)
  loss.backward()
  return {
    "name": "gspo"
    if settings["importance_sampling_level"] == "sequence"
    else settings["loss_type"],
    "options": settings,
    **_listed(new, old, ref, advantages, mask),
    "loss": loss.item(),
    "grad": new.grad.tolist(),
  }


def _rloo(generator, **options):
  new, old, ref, advantages, mask = _samples(generator)
  trainer = _trainer(
    _get_per_token_logps_and_entropies=lambda *_, **__: (new, 0 * new, None),
    **options,
  )
  inputs = _token_inputs(mask) | {
    "advantages": advantages,
    "old_logps": (old * mask).sum(1),
  }
  loss = rloo_trainer.RLOOTrainer._compute_loss(trainer, mock.Mock(), inputs)
  loss.backward()
  return {
    "name": "rloo",
    "options": options,
    **_listed(new, old, ref, advantages, mask),
    "loss": loss.item(),
    "grad": new.grad.tolist(),
  }


def _grpo_advantages(generator):
  rewards = _numbers(generator, 12).float()
  rewards[4:8] = 0.1  # a group without a signal
  trainer = _sampler(rewards, torch.zeros(12, 2))
  trainer.use_vllm = False
  trainer.num_iterations = 1
  trainer.multi_objective_aggregation = "sum_then_normalize"
  trainer.scale_rewards = "group"
  trainer.environment_factories = None
  trainer.tools = trainer.environments = None
  trainer._generate.return_value = [
    [[1, 2]] * 12,
    [[3, 4]] * 12,
    None,
    ["text"] * 12,
    None,
    {},
    None,
    None,
  ]
  output = grpo_trainer.GRPOTrainer._generate_and_score_completions(
    trainer, [{"prompt": "x"}] * 12
  )
  return {
    "name": "group_advantage",
    "reward": rewards.reshape(3, 4).tolist(),
    "advantage": output["advantages"].reshape(3, 4).tolist(),
  }


def _rloo_advantages(generator):
  rewards = _numbers(generator, 12).float()
  old = -_numbers(generator, 12, 2).float().abs()
  ref = -_numbers(generator, 12, 2).float().abs()
  trainer = _sampler(rewards, old, ref)
  trainer.beta = 0.05
  trainer.reward_clip_range = None
  trainer.normalize_advantages = False
  trainer._generate.return_value = (
    [[1, 2]] * 12,
    [[3, 4]] * 12,
    ["text"] * 12,
  )
  output = rloo_trainer.RLOOTrainer._generate_and_score_completions(
    trainer, [{"prompt": "x"}] * 12
  )
  return {
    "name": "leave_one_out",
    "reward": rewards.reshape(3, 4).tolist(),
    "old": old.tolist(),
    "ref": ref.tolist(),
    "beta": trainer.beta,
    "advantage": output["advantages"].reshape(3, 4).tolist(),
  }


def _overlong():
  lengths = [0, 50, 80, 81, 90, 99, 100, 101, 500]
  penalty = get_soft_overlong_punishment(
    max_completion_len=100, soft_punish_cache=20
  )
  return {
    "name": "overlong_penalty",
    "length": lengths,
    "penalty": penalty(completion_ids=[[1] * length for length in lengths]),
  }


def _listed(new, old, ref, advantages, mask):
  return {
    "token_logp": new.tolist(),
    "old_token_logp": old.tolist(),
    "ref_token_logp": ref.tolist(),
    "advantage": advantages.tolist(),
    "mask": mask.tolist(),
  }


def _token_inputs(mask):
  prompt = torch.ones(len(mask), 1, dtype=torch.long)
  return {
    "prompt_ids": prompt,
    "prompt_mask": prompt,
    "completion_ids": torch.ones(mask.shape, dtype=torch.long),
    "completion_mask": mask.double(),
  }


def _trainer(**attributes):
  """What a trainer's methods ask of it; anything else is a mock."""
  trainer = mock.MagicMock()
  trainer.model.training = True
  trainer.accelerator.num_processes = 1
  trainer.accelerator.gather = lambda x: x
  trainer.accelerator.gather_for_metrics = lambda x: x
  trainer.accelerator.reduce = lambda x, **_: x
  trainer._metrics = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  trainer._total_train_tokens, trainer._tp_size = 0, 1
  trainer.aux_loss_enabled = False
  for name, value in attributes.items():
    setattr(trainer, name, value)
  return trainer


def _sampler(rewards, old, ref=None):
  """A trainer that has sampled 12 responses of 2 tokens to 3 prompts."""
  trainer = _trainer(beta=0.0, num_generations=4)
  trainer.accelerator.device = torch.device("cpu")
  trainer.accelerator.process_index = 0
  trainer._tokenizer.pad_token_id = 0
  trainer.pad_to_multiple_of = None
  trainer.mask_truncated_completions = False
  trainer.log_multimodal = False
  trainer.args.per_device_train_batch_size = 12
  trainer.args.steps_per_generation = 1
  trainer.args.gradient_accumulation_steps = 1
  trainer.reward_weights = torch.ones(1)
  trainer.reward_func_names = ["reward"]
  trainer._pending_extra_logs = trainer._pending_metrics = {}
  trainer._calculate_rewards = lambda *_: rewards[:, None]
  trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (
    (ref if model is trainer.ref_model else old),
    None,
    None,
  )
  return trainer


if __name__ == "__main__":
  main()
