"""Export: a run's model as a folder that plain transformers (or peft) loads, with a model card."""

from fovea.export.folder import Exported, export
from fovea.export.source import Source, find_source

__all__ = ["Exported", "Source", "export", "find_source"]
