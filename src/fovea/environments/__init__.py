"""Environments: things that answer back. Light: no torch; gymnasium (extra `envs`) is imported where it is used."""

from fovea.environments.replay import Recorded, digest, restore

__all__ = ["Recorded", "digest", "restore"]
