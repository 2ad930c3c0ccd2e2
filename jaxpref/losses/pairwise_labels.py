"""Losses of pairs whose labels say how much better: soft, tied or graded."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range


@loss("pair")
def dpo_soft(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  preference: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """DPO with a probability for each label: cross-entropy with votes.

      loss = -p log σ(m) - (1 - p) log σ(-m),   m = beta (chosen - rejected)

  Use: where several judges voted, or one gave a probability. Its minimum is
  that of `irepo`, and its gradient is bounded.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the first response, summed
      over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    preference: p, the probability that the first response is preferred: 1 is
      hard (`dpo`), 0.5 a tie, and below it the other one is better.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Mitchell 2023, eq. 3, with a rate of wrong labels, 1 - p, of each
  pair's own (https://ericmitchell.ai/cdpo.pdf).

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 0.9)]
  >>> f"{dpo_soft(*x, beta=0.1)[0]:.4f}"
  '0.5844'
  """
  margin = beta * (chosen_logratio - rejected_logratio)
  kept, swapped = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
  return -preference * kept - (1.0 - preference) * swapped


@loss("pair")
def dpo_rao_kupper(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  preference: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  nu: Scalar = 3.0,
) -> Float32[Array, "*pairs"]:
  """DPO with ties, by a threshold below which no difference is seen.

      win:  -log σ(m - log nu),   m = beta (chosen - rejected)
      tie:  -log σ(m - log nu) - log σ(-m - log nu) - log(nu² - 1)

  Use: where judges may call a tie: ties hold a pair together instead of being
  thrown away. `dpo_davidson` does the same without a threshold.

  A preference between 0.5 and 1, of which the paper says nothing, is a win
  with weight 2p - 1 and else a tie; below 0.5 the other response wins.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the first response, summed
      over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    preference: p, where 1 is a win of the first response and 0.5 a tie.
    beta: strength of the pull towards the reference; larger stays closer.
    nu: how readily judges call ties: equals tie with probability
      (nu - 1) / (nu + 1), which the paper's 3 makes 1/2.

  Returns: one loss per pair; where policy and reference agree log(1 + nu) for
  a win, and log((nu + 1) / (nu - 1)) with no gradient for a tie.

  Raises ValueError unless nu > 1.

  Reference: Chen et al. 2024, its DPO-RK (https://arxiv.org/abs/2409.17431);
  Rao and Kupper 1967. Guo et al. 2024 (TODO,
  https://arxiv.org/abs/2411.02442) is the same with nu = √e.

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 0.5)]
  >>> f"{dpo_rao_kupper(*x, beta=0.1)[0]:.4f}"
  '0.7100'
  """
  check_range("nu - 1", nu - 1.0, _SMALLEST, float("inf"))
  margin = beta * (chosen_logratio - rejected_logratio)
  threshold = jnp.log(nu)
  win = -jax.nn.log_sigmoid(margin - threshold)
  defeat = -jax.nn.log_sigmoid(-margin - threshold)
  # (nu - 1)(nu + 1) keeps the digits of a nu near 1.
  tie = win + defeat - jnp.log(nu - 1.0) - jnp.log(nu + 1.0)
  return _outcome(preference, win, tie, defeat)


@loss("pair")
def dpo_davidson(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  preference: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  nu: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """DPO with ties, as likely as the geometric mean of both wins.

      win:  log(1 + e^-m + 2 nu e^(-m/2)),   m = beta (chosen - rejected)
      tie:  log(1 + (e^(m/2) + e^(-m/2)) / (2 nu))

  Use: where judges may call a tie. The odds of win against defeat stay those
  of DPO, e^m, which `dpo_rao_kupper` changes.

  A preference between 0.5 and 1, of which the paper says nothing, is a win
  with weight 2p - 1 and else a tie; below 0.5 the other response wins.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the first response, summed
      over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    preference: p, where 1 is a win of the first response and 0.5 a tie.
    beta: strength of the pull towards the reference; larger stays closer.
    nu: how readily judges call ties: equals tie with probability
      nu / (nu + 1), which the paper's 1 makes 1/2.

  Returns: one loss per pair; where policy and reference agree
  log(2 + 2 nu) for a win, and log(1 + 1 / nu) with no gradient for a tie.

  Raises ValueError unless nu > 0.

  Reference: Chen et al. 2024, its DPO-D (https://arxiv.org/abs/2409.17431);
  Davidson 1970.

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 0.5)]
  >>> f"{dpo_davidson(*x, beta=0.1)[0]:.4f}"
  '0.6988'
  """
  check_range("nu", nu, _SMALLEST, float("inf"))
  half = 0.5 * beta * (chosen_logratio - rejected_logratio)
  log_2nu = jnp.log(2.0 * nu)
  # Each as 1 + what the other two outcomes weigh against it, which keeps the
  # digits of an outcome that is almost sure.
  win = jnp.logaddexp(0.0, jnp.logaddexp(-2.0 * half, log_2nu - half))
  defeat = jnp.logaddexp(0.0, jnp.logaddexp(2.0 * half, log_2nu + half))
  tie = jnp.logaddexp(0.0, jnp.logaddexp(half, -half) - log_2nu)
  return _outcome(preference, win, tie, defeat)


@loss("pair")
def dpo_margin(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  margin: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """DPO that asks for one margin between the rewards of every pair.

      loss = -log σ(beta (chosen - rejected) - margin)

  Use: where pairs should be told apart further than DPO does at once.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    margin: what the difference of implicit rewards should exceed; the default
      is ours.

  Returns: one loss per pair; log(1 + e^margin) where policy and reference
  agree.

  Reference: Amini et al. 2024 with a constant offset
  (https://arxiv.org/abs/2402.10571). It is `dpo_rao_kupper` of wins alone,
  with nu = e^margin.

  >>> f"{dpo_margin(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '1.1032'
  """
  return -jax.nn.log_sigmoid(
    beta * (chosen_logratio - rejected_logratio) - margin
  )


@loss("pair")
def dpo_offset(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  offset: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """DPO that asks for a margin of its own in each pair.

      loss = -log σ(beta (chosen - rejected) - offset)

  Use: where labels are graded ("slightly better", "much better"), with an
  offset for each grade. `odpo` makes it of scores.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    offset: what the pair's difference of implicit rewards should exceed.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair; log(1 + e^offset) where policy and reference
  agree.

  Reference: Amini et al. 2024 (https://arxiv.org/abs/2402.10571).

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 0.5)]
  >>> f"{dpo_offset(*x, beta=0.1)[0]:.4f}"
  '0.7981'
  """
  margin = beta * (chosen_logratio - rejected_logratio)
  return -jax.nn.log_sigmoid(margin - offset)


@loss("pair")
def odpo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  chosen_score: Float32[Array, "*pairs"],
  rejected_score: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  alpha: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """DPO with an offset that grows with the difference of scores.

      loss = -log σ(beta (chosen - rejected)
                    - alpha log(chosen_score - rejected_score))

  Use: where every response has a score of a reward model or a person.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    chosen_score: score of the preferred response, which should be higher.
    rejected_score: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    alpha: how much the difference of scores counts; 0 is `dpo`.

  Returns: one loss per pair; log 2 where policy and reference agree and the
  scores differ by 1. Differences below 1e-6, and negative ones, count as 1e-6,
  where log would be infinite or undefined.

  Reference: Amini et al. 2024 (https://arxiv.org/abs/2402.10571).

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 3.0, 1.0)]
  >>> f"{odpo(*x, beta=0.1)[0]:.4f}"
  '0.9089'
  """
  difference = jnp.maximum(chosen_score - rejected_score, 1e-6)
  margin = beta * (chosen_logratio - rejected_logratio)
  return -jax.nn.log_sigmoid(margin - alpha * jnp.log(difference))


@loss("pair")
def irepo(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  preference: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  floor: Scalar = 0.05,
) -> Float32[Array, "*pairs"]:
  """Regression of the difference of implicit rewards on the log-odds of votes.

      loss = (beta (chosen - rejected) - log(p / (1 - p)))²

  Use: in rounds, with the policy of the last round as the reference and
  several votes on each pair. `dpo_soft` has the same minimum.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the first response, summed
      over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    preference: p, the share of votes for the first response; below 0.5 the
      other one is better.
    beta: strength of the pull towards the reference; larger stays closer.
    floor: p is kept from it to 1 - floor, since unanimous votes have infinite
      log-odds; 1 / (2 (votes + 1)) suits.

  Returns: one loss per pair; 0 where policy and reference agree on a tie.

  Raises ValueError unless 0 < floor < 0.5.

  Reference: Le et al. 2024 (https://arxiv.org/abs/2405.15230). The floor
  and the defaults are ours. With the constant target 1/2 it would be `ipo_sum`
  times beta².

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 0.8)]
  >>> f"{irepo(*x, beta=0.1)[0]:.4f}"
  '1.1800'
  """
  check_range("floor", floor, _SMALLEST, 0.5)
  share = jnp.clip(preference, floor, 1.0 - floor)
  log_odds = jnp.log(share) - jnp.log1p(-share)
  return (beta * (chosen_logratio - rejected_logratio) - log_odds) ** 2


@loss("pair")
def rebel(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  chosen_score: Float32[Array, "*pairs"],
  rejected_score: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """Regression of log-ratios on the difference of rewards.

      loss = (beta (chosen - rejected) - (chosen_score - rejected_score))²

  Use: online, on two samples of the policy of the last round, which is the
  reference, and a reward for each.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the first response, summed
      over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    chosen_score: reward of the first response; it may be the lower one.
    rejected_score: the same for the other response.
    beta: 1 / η of the paper, the strength of the pull towards the reference.

  Returns: one loss per pair; the squared difference of rewards where policy
  and reference agree.

  Reference: Gao et al. 2024 (https://arxiv.org/abs/2404.16767). The authors'
  code multiplies the rewards by η instead, which is this loss over beta².

  >>> x = [jnp.array([number]) for number in (2.0, -1.0, 3.0, 1.0)]
  >>> f"{rebel(*x, beta=1.0)[0]:.4f}"
  '1.0000'
  """
  difference = chosen_score - rejected_score
  return (beta * (chosen_logratio - rejected_logratio) - difference) ** 2


_SMALLEST = float(jnp.finfo(jnp.float32).tiny)  # that is above 0


def _outcome(preference: Array, win: Array, tie: Array, defeat: Array) -> Array:
  """Mixes the losses of the outcomes: 1 is a win, 0.5 a tie, 0 a defeat."""
  lean = 2.0 * preference - 1.0
  decided = jax.nn.relu(lean) * win + jax.nn.relu(-lean) * defeat
  return decided + (1.0 - jnp.abs(lean)) * tie
