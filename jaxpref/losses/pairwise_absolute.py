"""Losses of pairs that look at each response by itself, not only at a margin.

DPO may make both responses less likely, as long as the rejected one falls
further; these say of the chosen one by itself where it should go.
"""

import jax
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar


@loss("pair")
def nca(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Noise contrastive alignment of each pair.

      loss = -log σ(c) - log σ(-c) / 2 - log σ(-r) / 2,
      c = beta chosen,   r = beta rejected

  Use: where DPO makes the chosen response less likely, as in reasoning: the
  chosen log-ratio has a target above 0 here.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: α of the paper, the strength of the pull towards the reference. The
      default is TRL's; 0.01 in the paper.

  Returns: one loss per pair; 2 log 2 where policy and reference agree. The
  chosen response alone is at rest where c = log 2.

  Reference: Chen et al. 2024, its case of two responses
  (https://arxiv.org/abs/2402.05369). TRL's `nca_pair`.

  >>> f"{nca(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '1.3194'
  """
  chosen, rejected = beta * chosen_logratio, beta * rejected_logratio
  pulled = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
  return -jax.nn.log_sigmoid(chosen) - 0.5 * pulled


@loss("pair")
def bco_pair(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  shift: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Binary classifier optimization of each pair.

      loss = -log σ(beta chosen - shift) - log σ(shift - beta rejected)

  Use: where labels are thumbs up and down rather than comparisons; good and
  bad are then told apart by their reward alone.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
      The default is TRL's; 0.01 in the paper.
    shift: δ of the paper, the reward that separates good from bad; a running
      mean of beta times all log-ratios, through which no gradient flows.

  Returns: one loss per pair; 2 log 2 where policy and reference agree and
  the shift is 0.

  Reference: Jung et al. 2024 (https://arxiv.org/abs/2404.04656). TRL 1.16's
  `bco_pair` has no shift; 0.19 kept the running mean.

  >>> f"{bco_pair(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '1.2425'
  """
  chosen = beta * chosen_logratio - shift
  rejected = beta * rejected_logratio - shift
  return -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)


@loss("pair")
def sppo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  preference: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 1e-3,
) -> Float32[Array, "*pairs"]:
  """Self-play preference optimization towards soft win probabilities.

      loss = (chosen - t)² / 2 + (rejected + t)² / 2,
      t = (preference - 1/2) / beta

  Use: in rounds, with the policy of the last round as the reference and a
  preference model that says how often each answer wins.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the first response, summed
      over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    preference: probability that the first response wins; the other wins
      otherwise. Below 1/2 the pair is taken the other way round.
    beta: 1 / η of the paper, the strength of the pull towards the reference.

  Returns: one loss per pair; t² where policy and reference agree.

  Reference: Wu et al. 2024, eq. 4.7 (https://arxiv.org/abs/2405.00675), halved
  as in the authors' code. Their data may give each response its own rate of
  wins over all samples of a prompt, which need not sum to 1.

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 0.8)]
  >>> f"{sppo(*x, beta=0.1)[0]:.4f}"
  '2.5000'
  """
  target = (preference - 0.5) / beta
  chosen, rejected = chosen_logratio - target, rejected_logratio + target
  return 0.5 * (chosen**2 + rejected**2)


@loss("pair")
def sppo_hard(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Self-play preference optimization with hard labels.

      loss = (chosen - 1 / (2 beta))² + (rejected + 1 / (2 beta))²

  Use: where `sppo` would be, without a model of win probabilities.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: 1 / η of the paper, the strength of the pull towards the reference.

  Returns: one loss per pair; 1 / (2 beta²) where policy and reference agree.

  Reference: Wu et al. 2024, eq. 4.7 with wins of 1 and 0
  (https://arxiv.org/abs/2405.00675). Not halved, and with a beta of 0.1, as in
  TRL; the authors' code halves it and has 0.001.

  >>> f"{sppo_hard(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '25.0000'
  """
  target = 0.5 / beta
  return (chosen_logratio - target) ** 2 + (rejected_logratio + target) ** 2


@loss("pair")
def apo_zero(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Anchored preference optimization: chosen up, rejected down.

      loss = 1 - σ(beta chosen) + σ(beta rejected)

  Use: where the chosen responses are better than what the model writes now.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair, between 0 and 2; 1 where policy and reference
  agree. The gradient fades far from the reference on either side.

  Reference: D'Oosterlinck et al. 2024, eq. 7
  (https://arxiv.org/abs/2408.06266).

  >>> f"{apo_zero(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.9252'
  """
  # 1 - σ(x) as σ(-x), which keeps its digits where σ(x) is close to 1.
  chosen = jax.nn.sigmoid(-beta * chosen_logratio)
  return chosen + jax.nn.sigmoid(beta * rejected_logratio)


@loss("pair")
def apo_down(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Anchored preference optimization: both down, rejected further.

      loss = σ(beta chosen) + 1 - σ(beta (chosen - rejected))

  Use: where even the chosen responses are worse than what the model writes.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair, between 0 and 2; 1 where policy and reference
  agree, and there the chosen response is at rest.

  Reference: D'Oosterlinck et al. 2024, eq. 8
  (https://arxiv.org/abs/2408.06266).

  >>> f"{apo_down(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.9754'
  """
  margin = beta * (chosen_logratio - rejected_logratio)
  return jax.nn.sigmoid(beta * chosen_logratio) + jax.nn.sigmoid(-margin)


@loss("pair")
def dpop(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.3,
  penalty: Scalar = 50.0,
) -> Float32[Array, "*pairs"]:
  """DPO-positive (Smaug): DPO that may not make the chosen response unlikely.

      loss = -log σ(beta (chosen - rejected - penalty max(0, -chosen)))

  Use: on pairs that differ in a few tokens, as in mathematics, where DPO
  lowers the likelihood of both responses.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    penalty: λ of the paper, nats of margin asked for each nat that the chosen
      response lost.

  Returns: one loss per pair; log 2 where policy and reference agree, and that
  of `dpo` wherever the chosen log-ratio is not negative.

  Reference: Pal et al. 2024 (https://arxiv.org/abs/2402.13228).

  >>> f"{dpop(jnp.array([-0.1]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.9190'
  """
  lost = jax.nn.relu(-chosen_logratio)
  margin = chosen_logratio - rejected_logratio - penalty * lost
  return -jax.nn.log_sigmoid(beta * margin)


@loss("pair")
def cal_dpo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 1e-3,
  calibration: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """Calibrated DPO: a margin, and log-ratios of a given size.

      loss = -log σ(chosen - rejected)
             + calibration ((chosen - t)² + (rejected + t)²),   t = 1 / (2 beta)

  Use: where implicit rewards should keep the scale of real ones, and the
  chosen response should gain likelihood.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference, by way of t alone: there
      is none in the sigmoid. The default is the authors' for Mistral.
    calibration: weight of the squares; 1 is the paper's.

  Returns: one loss per pair; log 2 + 2 calibration t² where policy and
  reference agree.

  Reference: Xiao et al. 2024 (https://arxiv.org/abs/2412.14516). Code of the
  authors has a calibration of 1 (https://github.com/Cal-DPO/Cal-DPO) or of 0.5
  (https://github.com/tengxiao1/Cal-DPO). Some of it averages the squares over
  the batch before it adds them to each pair, which changes no mean over a
  batch.

  >>> f"{cal_dpo(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '25.0486'
  """
  target = 0.5 / beta
  squares = (chosen_logratio - target) ** 2 + (rejected_logratio + target) ** 2
  margin = chosen_logratio - rejected_logratio
  return calibration * squares - jax.nn.log_sigmoid(margin)
