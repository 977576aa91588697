"""A Qwen2.5-VL of 0.2 million random weights behind the processor settings of the published 3B model.

Those settings are facts about `Qwen/Qwen2.5-VL-3B-Instruct` (its preprocessor_config.json, the words of its chat
template, its special tokens), as public code quotes them: the model itself was never loaded here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fovea.models.construct import build_processor, build_tokenizer, model_config, random_model
from fovea.models.construct_families import QWEN_TEMPLATE
from fovea.models.policy import Policy, make_policy

GRID: dict[str, int] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
PIXELS = {"shortest_edge": 3136, "longest_edge": 12845056}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
WINDOW = 112
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""What the published template puts before a conversation that has no system turn."""

SIZES: dict[str, Any] = {
    "text_layers": 2,
    "text_width": 64,
    "text_mlp": 96,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "vision_layers": 2,
    "vision_width": 32,
    "vision_mlp": 64,
    "vision_heads": 2,
    "context": 128000,
}


def miniature(seed: int = 0) -> Policy:
    """Random weights; head and embeddings are one matrix and two tokens end a reply, as in the 3B model."""
    tokenizer = build_tokenizer(family="qwen2_5_vl")
    sizes = SIZES | {"min_pixels": PIXELS["shortest_edge"], "max_pixels": PIXELS["longest_edge"]}
    processor = build_processor("qwen2_5_vl", tokenizer, **sizes, pixel_mean=MEAN, pixel_std=STD)
    template = "{% if messages[0].role != 'system' %}" + SYSTEM + "{% endif %}" + QWEN_TEMPLATE
    processor.chat_template = tokenizer.chat_template = template
    config = model_config("qwen2_5_vl", tokenizer, **SIZES)
    config.tie_word_embeddings = True
    model = random_model(config, seed)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    return make_policy(model, processor)


def save_miniature(folder: Path) -> Path:
    """The plain transformers folder of it, as `model=FOLDER` takes it."""
    miniature().save(folder)
    return folder
