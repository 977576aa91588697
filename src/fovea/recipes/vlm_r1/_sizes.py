"""Three sizes of the embedded model for the study of scale: its language model with narrower MLPs, to be healed by SFT.

write_size("runs/size-256", width=256)

Fewer layers do not do: with any one of its four layers left out fovea-tiny gets 6 % or less of digits/locate right, and
90 steps of SFT do not heal that (docs/lab-notes.md, section 13). Half of the MLP's units left out leave it 34 %.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fovea.models.policy import find_model

SIZES = (128, 256, 512)
"""Units of each MLP of the language model; fovea-tiny has 512."""


def write_size(folder: str | Path, width: int) -> int:
    """Write fovea-tiny with only the `width` heaviest units of each MLP of its language model; returns its number of
    weights. The weight of a unit is the product of the norms of its rows in gate and up and its column in down."""
    import torch
    from transformers import AutoModelForImageTextToText

    target, source = Path(folder), Path(find_model("fovea-tiny", download=False))
    model = AutoModelForImageTextToText.from_pretrained(source)
    for layer in model.model.language_model.layers:
        gate, up, down = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
        weight = gate.weight.norm(dim=1) * up.weight.norm(dim=1) * down.weight.norm(dim=0)
        kept = weight.topk(width).indices.sort().values
        for linear, dimension in ((gate, 0), (up, 0), (down, 1)):
            linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(dimension, kept))
    model.config.text_config.intermediate_size = width
    model.save_pretrained(target)
    _copy_the_rest(source, target)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def _copy_the_rest(source: Path, target: Path) -> None:
    """Tokenizer, template and processor; not the records of the whole model."""
    for path in source.iterdir():
        wanted = (
            path.is_file()
            and path.suffix != ".safetensors"
            and path.name not in ("build.json", "__init__.py")
        )
        if wanted and not (target / path.name).exists():
            shutil.copy(path, target / path.name)
