"""Fovea teaches vision-language models to look: reinforcement learning from rewards that can be checked."""

__version__ = "0.1.0"
