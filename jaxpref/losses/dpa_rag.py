"""Dual preference alignment of a reranker: three losses of one query.

A document is worth retrieving if it turns the reader's wrong answer right. The
reranker learns it of single documents (point-wise), of ranked ones (pair-wise)
and by its embeddings (contrastive).
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxpref.losses.listwise import all_pairs_mean
from jaxpref.losses.ratios import mean_where
from jaxpref.losses.registry import loss
from jaxpref.losses.reward import reward_bce
from jaxpref.types import Scalar, checked


@loss("list")
def dpa_rag(
  reward: Float32[Array, "*lists"],
  desirable: Bool[Array, "*lists"],
  values: Float32[Array, "*lists items"],
  scores: Float32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  embedding: Float32[Array, "*lists examples dims"],
  label: Int32[Array, "*lists examples"],
  *,
  point_weight: Scalar = 1.0,
  pair_weight: Scalar = 1.0,
  contrast_weight: Scalar = 1.0,
  temperature: Scalar = 0.07,
) -> Float32[Array, "*lists"]:
  """Point-wise, pair-wise and contrastive loss of a reranker, weighted.

      loss = a reward_bce(reward, desirable)
             + b all_pairs_mean(values, scores, beta=1)
             + c supervised_contrastive(embedding, label)

  Use: to train a reranker on what documents do to a reader's answers. The
  authors set the weights anew at each step (`min_norm_weights`); equal ones did
  no worse where we tried.

  Args:
    reward: log-odds that one document of the query is helpful; of a head with
      two outputs, their difference.
    desirable: whether that document is.
    values: the reranker's score of each ranked document of the query.
    scores: larger for better documents; equal ones are not compared.
    valid: which documents there are.
    embedding: of helpful and harmful documents, read together with the query.
    label: the class of each of these.
    point_weight: a.
    pair_weight: b.
    contrast_weight: c.
    temperature: of the contrastive term; 0.07 is the authors' code's.

  Returns: one loss per query; point- and pair-wise terms are log 2 where
  nothing is told apart.

  Reference: Dong et al. 2024 (https://arxiv.org/abs/2406.18676). The paper
  contrasts queries with documents; this follows the authors' code, which
  contrasts embeddings of (query, document) read together.

  >>> e, pair = jnp.eye(2)[None], jnp.array([[1.2, 0.4]])
  >>> good = jnp.array([True])
  >>> row = (pair, pair, pair > 0, e, jnp.zeros((1, 2), jnp.int32))
  >>> f"{dpa_rag(jnp.array([0.9]), good, *row)[0]:.4f}"
  '0.7123'
  """
  point = reward_bce(reward, desirable)
  pair = all_pairs_mean(values, scores, valid, beta=1.0)
  every = jnp.ones_like(label, bool)
  contrast = supervised_contrastive(
    embedding, label, every, temperature=temperature
  )
  return point_weight * point + pair_weight * pair + contrast_weight * contrast


@loss("list")
def supervised_contrastive(
  embedding: Float32[Array, "*lists items dims"],
  label: Int32[Array, "*lists items"],
  valid: Bool[Array, "*lists items"],
  *,
  temperature: Scalar = 0.07,
) -> Float32[Array, "*lists"]:
  """Pulls embeddings of one class together and pushes other classes away.

      loss = -mean_i mean_{p of i's class} log (e^{s_ip} / Σ_{a ≠ i} e^{s_ia})
      s_ij = cos(embedding_i, embedding_j) / temperature

  Use: to make a model's embeddings tell good from bad, beside a loss of its
  scores. At 0.07 its gradient is large until the classes are apart.

  An item that is alone in its class is only pushed away.

  Args:
    embedding: of each item; its length does not matter.
    label: the class of each item.
    valid: which items there are.
    temperature: what cosines are divided by; 0.07 is the authors' code's.

  Returns: one loss per list; log(items - 1) where all embeddings are equal.

  Reference: Khosla et al. 2020, eq. 2 (https://arxiv.org/abs/2004.11362).

  >>> e, label = jnp.eye(3)[None], jnp.array([[0, 0, 1]])
  >>> f"{supervised_contrastive(e, label, label >= 0)[0]:.4f}"
  '0.6931'
  """
  embedding = jnp.where(valid[..., None], embedding, 0.0)
  square = jnp.sum(embedding**2, axis=-1, keepdims=True)
  unit = embedding * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  similarity = jnp.einsum("...id,...jd->...ij", unit, unit) / temperature
  itself = jnp.eye(label.shape[-1], dtype=bool)
  other = valid[..., None, :] & ~jnp.broadcast_to(itself, similarity.shape)
  similarity = jnp.where(other, similarity, -1e30)  # -inf has NaN gradients
  logp = similarity - jax.nn.logsumexp(similarity, axis=-1, keepdims=True)
  positive = other & (label[..., :, None] == label[..., None, :])
  anchor = valid & jnp.any(positive, axis=-1)
  return -mean_where(mean_where(logp, positive), anchor)


@checked
def min_norm_weights(
  products: Float32[Array, "*rows losses losses"],
) -> Float32[Array, "*rows losses"]:
  """Weights of several losses whose combined gradient is the shortest.

      argmin_a |Σ_k a_k g_k|²   where a ≥ 0, Σ_k a_k = 1

  Use: to balance a few losses at each step: no weighted gradient makes any of
  them worse, to first order. A loss of large gradient gets little weight.

  Every subset of losses is tried, so keep to about six. The minimum over a
  subset without inequalities is linear; the best feasible one is the answer.

  Args:
    products: g_k · g_l of the losses' gradients.

  Returns: one weight per loss; a half each of two orthogonal gradients of one
  length.

  Reference: Désidéri 2012; Sener and Koltun 2018
  (https://arxiv.org/abs/1810.04650). The authors of DPA-RAG search iteratively
  and stop short of it.

  >>> f"{min_norm_weights(jnp.diag(jnp.array([1.0, 3.0])))[0]:.4f}"
  '0.7500'
  """
  losses = products.shape[-1]
  # Gradients differ by orders of magnitude; weights do not depend on a scale.
  scale = jnp.max(jnp.abs(products), axis=(-2, -1), keepdims=True)
  products = products / jnp.where(scale > 0.0, scale, 1.0)
  best = jnp.full(products.shape[:-2], jnp.inf)
  weights = jnp.full(products.shape[:-1], 1.0 / losses)
  for size in range(1, losses + 1):
    for subset in itertools.combinations(range(losses), size):
      candidate = _min_norm_of(products, subset)
      norm = jnp.einsum("...k,...kl,...l", candidate, products, candidate)
      # Comparisons with the NaN of a singular subset are False.
      better = jnp.all(candidate >= 0.0, axis=-1) & (norm < best)
      best = jnp.where(better, norm, best)
      weights = jnp.where(better[..., None], candidate, weights)
  return weights


def _min_norm_of(
  products: Float32[Array, "*rows losses losses"], subset: tuple[int, ...]
) -> Float32[Array, "*rows losses"]:
  """The minimum over weights of any sign of a subset of the losses."""
  index = jnp.array(subset)
  part = products[..., index[:, None], index]
  # By Lagrange: products @ a is one number where the weights sum to 1. Only
  # gradients that depend on each other have no solution.
  border = jnp.ones((*part.shape[:-1], 1))
  last = jnp.zeros((*part.shape[:-2], 1, 1))
  system = jnp.block([[part, border], [border.swapaxes(-1, -2), last]])
  target = jnp.zeros(system.shape[:-1]).at[..., -1].set(1.0)
  solved = jnp.linalg.solve(system, target[..., None])[..., :-1, 0]
  solved = solved / jnp.sum(solved, axis=-1, keepdims=True)
  return jnp.zeros(products.shape[:-1]).at[..., index].set(solved)
