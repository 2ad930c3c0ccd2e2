"""Training on preferences in JAX: language models and diffusion models."""

__version__ = "0.1.0"
