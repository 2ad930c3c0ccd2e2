"""Losses of judges: language models that name the better answer by a letter.

A judge reads a prompt and two answers, A and B, and says which is better. It is
asked in both orders where its liking for a place should not count.
"""

import jax
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, checked


@loss("pair")
def pairwise_generative(
  chosen_logit: Float32[Array, "*pairs"],
  rejected_logit: Float32[Array, "*pairs"],
) -> Float32[Array, "*pairs"]:
  """Cross-entropy between the two letters that a judge may answer.

      loss = -log softmax(chosen, rejected)[chosen]

  Use: to train a language model as a judge on its answer's letter alone, which
  spends nothing on the rest of the vocabulary. Show every pair in both orders,
  or the judge learns to like a place.

  The softmax over the whole vocabulary instead is `sft` of that token.

  Args:
    chosen_logit: logit, or log-probability, of the letter that names the
      preferred answer, at the position that predicts the verdict.
    rejected_logit: the same of the other letter.

  Returns: one loss per pair; log 2 where the letters are equally likely.

  Reference: Liu et al. 2024 (https://arxiv.org/abs/2410.03837), Pourreza et
  al. 2024 (https://arxiv.org/abs/2410.01943); both train on the softmax over
  all tokens, and the former decides by the two letters.

  >>> f"{pairwise_generative(jnp.array([1.3]), jnp.array([0.4]))[0]:.4f}"
  '0.3412'
  """
  return -jax.nn.log_sigmoid(chosen_logit - rejected_logit)


@loss("pair")
def pairwise_judge(
  chosen_logit: Float32[Array, "*pairs"],
  rejected_logit: Float32[Array, "*pairs"],
  swapped_chosen_logit: Float32[Array, "*pairs"],
  swapped_rejected_logit: Float32[Array, "*pairs"],
  *,
  consistency: Scalar = 0.0,
) -> Float32[Array, "*pairs"]:
  """Cross-entropy of a judge's letters in both orders, which should agree.

      p  = softmax(chosen, rejected)[chosen],   q the same, order swapped
      loss = -(log p + log q) / 2 + c (p - q)²

  Use: as `pairwise_generative`, with both orders of a pair at once, and a
  price on a verdict that depends on the order.

  Args:
    chosen_logit: logit of the letter that names the preferred answer, where it
      is shown first.
    rejected_logit: of the other letter, in the same prompt.
    swapped_chosen_logit: of the letter that names the preferred answer, where
      it is shown second.
    swapped_rejected_logit: of the other letter, in that prompt.
    consistency: c, the price of the squared gap between the two orders.

  Returns: one loss per pair; log 2 where the letters are equally likely.

  Reference: Xu et al. 2025 (https://arxiv.org/abs/2504.04950) for a judge that
  generates its verdict. Both orders in one loss, and the price of their gap,
  are ours; at a price of 0 it is plain cross-entropy.

  >>> a, b, c, d = (jnp.array([x]) for x in (1.2, 0.3, 0.9, 0.4))
  >>> f"{pairwise_judge(a, b, c, d, consistency=1.0)[0]:.4f}"
  '0.4154'
  """
  first = chosen_logit - rejected_logit
  second = swapped_chosen_logit - swapped_rejected_logit
  gap = jax.nn.sigmoid(first) - jax.nn.sigmoid(second)
  likelihood = jax.nn.log_sigmoid(first) + jax.nn.log_sigmoid(second)
  return -0.5 * likelihood + consistency * gap**2


@checked
def judge_preference(
  chosen_logit: Float32[Array, "*pairs"],
  rejected_logit: Float32[Array, "*pairs"],
  swapped_chosen_logit: Float32[Array, "*pairs"],
  swapped_rejected_logit: Float32[Array, "*pairs"],
  *,
  temperature: Scalar = 1.0,
) -> Float32[Array, "*pairs"]:
  """A judge's probability that the first answer is better, over both orders.

      P = (σ((chosen - rejected) / T) + σ(the same, order swapped)) / 2

  Use: as a reward (against an answer known to be good), or to decide. In one
  order only, a policy learns to please the judge's liking for a place.

  Args:
    chosen_logit: logit of the letter that names the answer in question, where
      it is shown first.
    rejected_logit: of the other letter, in the same prompt.
    swapped_chosen_logit: of the letter that names the answer in question, where
      it is shown second.
    swapped_rejected_logit: of the other letter, in that prompt.
    temperature: T, which divides the logits.

  Returns: one probability per pair; 0.5 where the judge cannot tell.

  Reference: Xu et al. 2025 (https://arxiv.org/abs/2504.04950) for the chance to
  beat a known answer as a reward; the average over both orders is ours.

  >>> a, b, c, d = (jnp.array([x]) for x in (1.2, 0.3, 0.9, 0.4))
  >>> f"{judge_preference(a, b, c, d)[0]:.4f}"
  '0.6667'
  """
  first = (chosen_logit - rejected_logit) / temperature
  second = (swapped_chosen_logit - swapped_rejected_logit) / temperature
  return 0.5 * (jax.nn.sigmoid(first) + jax.nn.sigmoid(second))
