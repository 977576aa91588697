"""Three sizes of the embedded model for the study of scale: its language model with fewer layers, to be healed by SFT.

write_size("runs/size-2", layers=2)
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fovea.models.policy import find_model

SIZES = (1, 2, 4)
"""Layers of the language model; fovea-tiny has 4."""


def write_size(folder: str | Path, layers: int) -> int:
    """Write fovea-tiny with only the first `layers` layers of its language model; returns its number of weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    target, source = Path(folder), Path(find_model("fovea-tiny", download=False))
    model = AutoModelForImageTextToText.from_pretrained(source)
    text = model.model.language_model
    text.layers = torch.nn.ModuleList(list(text.layers)[:layers])
    model.config.text_config.num_hidden_layers = layers
    model.save_pretrained(target)
    ours = {"build.json", "__init__.py"}  # records of the whole model
    for path in source.iterdir():
        wanted = path.is_file() and path.suffix != ".safetensors" and path.name not in ours
        if wanted and not (target / path.name).exists():
            shutil.copy(path, target / path.name)
    return int(sum(parameter.numel() for parameter in model.parameters()))
