"""Make a tokenizer, a processor and a randomly initialised model of a family from a config, without a hub.

Used by the embedded model's build script, by the benchmarks and by the tests. Not used when a user trains a
model of their own: that one comes with its processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen's turn format, images where the message puts them. No default system prompt: a tiny model has no use for one.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Qwen2's pre-tokenizer (digits one by one, so that numbers share their tokens), with two additions that shorten
# replies: the pieces of the answer formats are kept whole, and punctuation takes the space before a number along.
_PIECES = r"""</?(?:think|answer)>|\[?\{"bbox_2d": \[|\], "label": "|"\}, (?=\{)|"\}\]"""
_SPLIT = (
    _PIECES + r"""|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
    r"""| ?(?:(?!</?(?:think|answer)>)[^\s\p{L}\p{N}])+(?: (?=\p{N})|[\r\n]*)|\s*[\r\n]+|\s+(?!\S)|\s+"""
)

PROCESSORS: dict[str, Any] = {
    "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
}

_SAMPLE_TEXT = (
    "Where is the red circle? Answer with its box.",
    "<think>The picture shows two shapes.</think><answer>[120, 80, 400, 360]</answer>",
    'Describe the picture. [{"bbox_2d": [0, 10, 20, 30], "label": "blue square"}]',
)


def build_tokenizer(texts: Iterable[str] = _SAMPLE_TEXT, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`, with the Qwen special tokens and chat template.

    The vocabulary holds all 256 bytes, so that any text can be written; `vocab_size` is an upper bound.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    patch_size: int = 14,
    min_pixels: int = 28 * 28,
    max_pixels: int = 28 * 28 * 1280,
) -> Any:
    """The family's own processor around `tokenizer`; pictures are resized to multiples of 2 * `patch_size`."""
    processor, video_processor = PROCESSORS[family]
    grid: dict[str, Any] = {"patch_size": patch_size, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    images = Qwen2VLImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, **grid)
    return processor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=video_processor(**grid),
        chat_template=CHAT_TEMPLATE,
    )


def model_config(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    vocab_size: int = 1024,
    text_layers: int = 4,
    text_width: int = 256,
    text_mlp: int = 768,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    vision_layers: int = 4,
    vision_width: int = 128,
    vision_mlp: int = 512,
    vision_heads: int = 4,
    patch_size: int = 14,
    position_grid: int = 16,
    deepstack: tuple[int, ...] = (1, 2),
    context: int = 8192,
    initializer_range: float = 0.02,
) -> Any:
    """A small config of a family; the defaults give 4 to 6 million weights. Embeddings are untied."""

    def token(name: str) -> int:
        return cast(int, tokenizer.convert_tokens_to_ids(name))

    half = head_dim // 2
    section = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    text: dict[str, Any] = {
        "vocab_size": max(vocab_size, len(tokenizer)),
        "hidden_size": text_width,
        "intermediate_size": text_mlp,
        "num_hidden_layers": text_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "initializer_range": initializer_range,
        "rope_parameters": rope,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision: dict[str, Any] = {
        "depth": vision_layers,
        "hidden_size": vision_width,
        "intermediate_size": vision_mlp,
        "num_heads": vision_heads,
        "patch_size": patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": text_width,
        "initializer_range": initializer_range,
    }
    ids: dict[str, Any] = {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    if family == "qwen3_vl":
        vision |= {
            "num_position_embeddings": position_grid**2,
            "deepstack_visual_indexes": list(deepstack),
            "hidden_act": "gelu_pytorch_tanh",
        }
        rope["mrope_interleaved"] = True
        return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    if family == "qwen2_5_vl":
        text.pop("head_dim")  # this family derives it from the width
        full = [layer for layer in range(vision_layers) if layer % 2 == 1]
        vision |= {"window_size": 8 * patch_size, "fullatt_block_indexes": full, "hidden_act": "silu"}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    raise ValueError(f"no config for family {family!r}; known: {', '.join(PROCESSORS)}")


def random_model(config: Any, seed: int) -> Any:
    """A model of `config` with freshly initialised float32 weights; the global generator is left as it was."""
    kind = (
        Qwen3VLForConditionalGeneration
        if config.model_type == "qwen3_vl"
        else Qwen2_5_VLForConditionalGeneration
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    return model.float().eval()


def random_policy_parts(family: str, seed: int = 0, **sizes: Any) -> tuple[Any, Any]:
    """(model, processor) of a family with random weights. `sizes` go to `model_config`."""
    tokenizer = build_tokenizer()
    processor = build_processor(family, tokenizer, patch_size=sizes.get("patch_size", 14))
    return random_model(model_config(family, tokenizer, **sizes), seed), processor
