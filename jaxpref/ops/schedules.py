"""How much noise there is at each timestep, and which timesteps are visited.

Tables are made once, on the host, in float64: cumulative products of a
thousand factors lose three digits in float32. The names `leading`, `trailing`
and the rest are those of diffusers' scheduler_config.json.

`alpha_bar` is the share of the signal's power at each timestep, between 1, all
signal, and 0, all noise (ᾱ in Ho et al. 2020, `alphas_cumprod` in diffusers).
`sigma` is the noise's standard deviation where the signal's is 1.
"""

import math

from jaxtyping import Float64, Int64
import numpy as np

from jaxpref.types import checked

Table = Float64[np.ndarray, " timesteps"]
Visited = Int64[np.ndarray, " steps"]


@checked
def linear_betas(start: float, end: float, timesteps: int) -> Table:
  """Ho et al. 2020, section 4 (https://arxiv.org/abs/2006.11239)."""
  return np.linspace(start, end, timesteps)


@checked
def scaled_linear_betas(start: float, end: float, timesteps: int) -> Table:
  """Linear in the square root, as latent diffusion was trained.

  Reference: the code of Rombach et al. 2021 (https://arxiv.org/abs/2112.10752).
  """
  return np.linspace(start**0.5, end**0.5, timesteps) ** 2


@checked
def cosine_betas(timesteps: int) -> Table:
  """The signal's amplitude falls as a cosine ("squaredcos_cap_v2").

  Reference: Nichol and Dhariwal 2021, eq. 17 (https://arxiv.org/abs/2102.09672).
  """
  time = np.arange(timesteps + 1) / timesteps
  power = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
  return np.minimum(1.0 - power[1:] / power[:-1], 0.999)


@checked
def alpha_bar_of(betas: Table) -> Table:
  """The signal's power after each timestep's noise."""
  return np.cumprod(1.0 - betas)


@checked
def with_zero_terminal_snr(alpha_bar: Table) -> Table:
  """The same schedule stretched until its last timestep is noise alone.

  The amplitude √ᾱ is shifted and scaled; its first value stays.

  Reference: Lin et al. 2023, algorithm 1 (https://arxiv.org/abs/2305.08891).
  """
  root = np.sqrt(alpha_bar)
  return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@checked
def sigma_of(
  alpha_bar: Float64[np.ndarray, "*any"],
) -> Float64[np.ndarray, "*any"]:
  """√((1 - ᾱ) / ᾱ), the noise's deviation where the signal's is 1."""
  return np.sqrt((1.0 - alpha_bar) / alpha_bar)


@checked
def karras_sigmas(
  smallest: float, largest: float, steps: int, *, rho: float = 7.0
) -> Float64[np.ndarray, " steps"]:
  """Falling sigmas, evenly spaced in sigma^(1/rho).

  Reference: Karras et al. 2022, eq. 5 (https://arxiv.org/abs/2206.00364).
  """
  ends = largest ** (1.0 / rho), smallest ** (1.0 / rho)
  return np.linspace(*ends, steps) ** rho


@checked
def timestep_of_sigma(
  sigma: Float64[np.ndarray, " steps"], table: Table
) -> Float64[np.ndarray, " steps"]:
  """Where in a rising table of sigmas each would stand, by its logarithm."""
  return np.interp(np.log(sigma), np.log(table), np.arange(len(table)))


@checked
def shifted(
  time: Float64[np.ndarray, "*any"], shift: float
) -> Float64[np.ndarray, "*any"]:
  """Times of a flow moved towards noise, as large images need (shift > 1).

  Reference: Esser et al. 2024, eq. 23 (https://arxiv.org/abs/2403.03206).
  """
  return shift * time / (1.0 + (shift - 1.0) * time)


@checked
def flow_times(
  steps: int, *, timesteps: int, shift: float
) -> Float64[np.ndarray, " steps"]:
  """Falling times of a flow model's steps; 1 is noise, 0 the image.

  Both ends of the table that training used are shifted, and then the line
  between them is again, as diffusers' FlowMatchEulerDiscreteScheduler does.
  """
  first, last = shifted(np.array([1.0, 1.0 / timesteps]), shift)
  return shifted(np.linspace(first, last, steps), shift)


@checked
def leading(steps: int, timesteps: int, offset: int) -> Visited:
  """Every (timesteps // steps)-th from `offset` up, the noisiest first."""
  return np.arange(steps)[::-1] * (timesteps // steps) + offset


@checked
def trailing(steps: int, timesteps: int) -> Visited:
  """Evenly spaced, from the very last timestep down.

  Reference: Lin et al. 2023, section 3.3 (https://arxiv.org/abs/2305.08891).
  """
  # Halves are rounded as in diffusers, which for some numbers of steps (61,
  # 103 ...) makes one more by its rounding.
  spaced = np.arange(timesteps, 0, -timesteps / steps)[:steps]
  return np.round(spaced).astype(np.int64) - 1


@checked
def linspace(steps: int, timesteps: int) -> Float64[np.ndarray, " steps"]:
  """From the last timestep to the first, both visited; fractions between."""
  return np.linspace(0.0, timesteps - 1.0, steps)[::-1]


@checked
def distilled(steps: int, timesteps: int, trained_steps: int) -> Visited:
  """`steps` of the `trained_steps` that a few-step model was distilled at.

  Reference: the code of Luo et al. 2023 (https://arxiv.org/abs/2310.04378).
  """
  every = timesteps // trained_steps
  trained = np.arange(1, trained_steps + 1)[::-1] * every - 1
  chosen = np.linspace(0, trained_steps, num=steps, endpoint=False)
  return trained[np.floor(chosen).astype(np.int64)]
