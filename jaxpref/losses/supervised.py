"""Likelihood losses, which need no comparison."""

from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss


@loss("token")
def sft(
  token_logp: Float32[Array, "*tokens"],
) -> Float32[Array, "*tokens"]:
  """Negative log-likelihood of each response token (supervised fine-tuning).

      loss = -log π(y_t | x, y_<t)

  Use: before learning from preferences, on answers worth imitating.

  Args:
    token_logp: log-probability of each response token, in nats.

  Returns: one loss per token; its mean over tokens is the cross-entropy.
  """
  return -token_logp
