"""Stable Diffusion: XL, its relatives, 1.x and 2.x."""
