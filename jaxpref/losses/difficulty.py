"""How much a prompt's advantages are scaled by its difficulty (GRPO-S).

Prompts of one category of harm stand along the trailing axis. The product of
hardness and responsiveness is the `difficulty` that `grpo_s` takes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.ratios import mean_where
from jaxpref.types import Scalar, checked


@checked
def sentence_match(
  similarity: Float32[Array, "*prompts sentences shown"],
  valid: Bool[Array, "*prompts sentences shown"],
) -> Float32[Array, "*prompts"]:
  """How well the sentences of a sample are found in a demonstration.

      W = mean over sentences of the largest similarity to one shown

  Use: as the likeness of `data_hardness`.

  Args:
    similarity: cosine of each sentence of the sample with each sentence of the
      demonstration.
    valid: which pairs of sentences there are.

  Returns: one likeness per prompt; 0 where either has no sentence.

  Reference: Cheng et al. 2025, DR-IRL (https://arxiv.org/abs/2503.18991).

  >>> s = jnp.array([[0.9, 0.2], [0.5, 0.8]])
  >>> f"{sentence_match(s, s > 0):.4f}"
  '0.8500'
  """
  best = jnp.max(jnp.where(valid, similarity, -jnp.inf), axis=-1)
  return mean_where(best, jnp.any(valid, axis=-1))


@checked
def data_hardness(
  likeness: Float32[Array, "*categories prompts"],
  valid: Bool[Array, "*categories prompts"],
) -> Float32[Array, "*categories prompts"]:
  """How hard a prompt is beside the others of its category.

      hardness = σ(δ) / σ(mean of δ),   δ = 1 - likeness

  Use: to weigh prompts up where the policy is far from the demonstration.

  For likeness from 0 to 1 it is between 0.68 and 1.46.

  Args:
    likeness: of the policy's sample to the demonstration (`sentence_match`).
    valid: which prompts there are.

  Returns: one factor per prompt; 1 where all are alike, 0 where not valid.

  Reference: Cheng et al. 2025, DR-IRL (https://arxiv.org/abs/2503.18991).

  >>> w = jnp.array([0.85, 0.4])
  >>> f"{data_hardness(w, w > 0)[0]:.4f}"
  '0.9068'
  """
  distance = 1.0 - jnp.where(valid, likeness, 0.0)
  usual = jax.nn.sigmoid(mean_where(distance, valid))
  return jnp.where(valid, jax.nn.sigmoid(distance) / usual[..., None], 0.0)


@checked
def model_responsiveness(
  gap: Float32[Array, "*categories prompts"],
  valid: Bool[Array, "*categories prompts"],
  *,
  threshold: Scalar,
) -> Float32[Array, "*categories"]:
  """How the policy does on a category, outliers left out.

      σ(mean of the kept gaps) / σ(mean of all),   kept: (gap - mean)² ≤ τ

  Use: to weigh whole categories, as the policy's rewards there move.

  Args:
    gap: reward of the policy's sample less that of the demonstration.
    valid: which prompts there are.
    threshold: τ, the squared distance from the mean of what is kept. The paper
      names no value.

  Returns: one factor per category; 1 where all gaps, or none, are kept.

  Reference: Cheng et al. 2025, DR-IRL (https://arxiv.org/abs/2503.18991).

  >>> g = jnp.array([0.8, 0.5, -0.1, 3.0])
  >>> f"{model_responsiveness(g, g < 9, threshold=2.0):.4f}"
  '0.8082'
  """
  gap = jnp.where(valid, gap, 0.0)
  mean = mean_where(gap, valid)
  kept = valid & ((gap - mean[..., None]) ** 2 <= threshold)
  # By logs: σ of a very negative mean is 0 in both places.
  ratio = jnp.exp(
    jax.nn.log_sigmoid(mean_where(gap, kept)) - jax.nn.log_sigmoid(mean)
  )
  return jnp.where(jnp.any(kept, axis=-1), ratio, 1.0)
