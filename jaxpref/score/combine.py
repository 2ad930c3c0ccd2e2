"""Several scorers' opinions of the same images as one number each."""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np


def votes(
  scores: Float[np.ndarray, "images scorers"],
) -> Float[np.ndarray, " images"]:
  """The share of duels that each image of a prompt wins.

      votes = wins over any other image, by any scorer / (scorers (K - 1))

  Equal scores give neither a win.

  Reference: Karthik et al. 2024, Syn-Pic's labels of RankDPO
  (https://arxiv.org/abs/2410.18013).

  >>> votes(np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
  [0.5, 0.5, 0.25]
  """
  wins = scores[:, None] > scores[None, :]
  count = scores.shape[1] * max(len(scores) - 1, 1)
  return wins.sum(axis=(1, 2)) / count


def ensemble(
  scores: Sequence[Float[np.ndarray, "_ scorers"]],
) -> list[Float[np.ndarray, " _"]]:
  """The mean of each image's scores in standard deviations from the average.

  Averages and deviations are each scorer's, over the images of all prompts; one
  that says the same of all images adds nothing.

  >>> ensemble([np.array([[1.0, 10.0], [3.0, 30.0]])])[0].tolist()
  [-1.0, 1.0]
  """
  together = np.concatenate(scores)
  mean, std = together.mean(axis=0), together.std(axis=0)
  std = np.where(std > 0, std, 1.0)
  return [((each - mean) / std).mean(axis=1) for each in scores]
