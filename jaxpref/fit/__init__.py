"""Objectives, the one step, the one loop, optimizer, checkpoints, metrics."""
