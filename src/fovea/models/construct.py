"""Make a tokenizer, a processor and a randomly initialised model of a family from a config, without a hub.

Used by the embedded model's build script, by the benchmarks and by the tests. Not used when a user trains a
model of their own: that one comes with its processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from fovea.models.construct_families import BUILDERS, Builder, Sizes
from fovea.models.construct_more import MORE

# Qwen2's pre-tokenizer (digits one by one, so that numbers share their tokens), with two additions that shorten
# replies: the pieces of the answer formats are kept whole, and punctuation takes the space before a number along.
_PIECES = r"""</?(?:think|answer)>|\[?\{"bbox_2d": \[|\], "label": "|"\}, (?=\{)|"\}\]"""
_SPLIT = (
    _PIECES + r"""|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
    r"""| ?(?:(?!</?(?:think|answer)>)[^\s\p{L}\p{N}])+(?: (?=\p{N})|[\r\n]*)|\s*[\r\n]+|\s+(?!\S)|\s+"""
)

_SAMPLE_TEXT = (
    "Where is the red circle? Answer with its box.",
    "<think>The picture shows two shapes.</think><answer>[120, 80, 400, 360]</answer>",
    'Describe the picture. [{"bbox_2d": [0, 10, 20, 30], "label": "blue square"}]',
)


def build_tokenizer(
    texts: Iterable[str] = _SAMPLE_TEXT, vocab_size: int = 1024, family: str = "qwen3_vl"
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`, with the special tokens and chat template of a family.

    The vocabulary holds all 256 bytes, so that any text can be written; `vocab_size` is an upper bound.
    """
    builder = _builder(family)
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
        special_tokens=list(builder.tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=builder.eos,
        pad_token=builder.tokens[0],
        additional_special_tokens=list(builder.tokens[1:]),
        extra_special_tokens=dict(builder.named),
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        chat_template=builder.template,
    )


def build_processor(family: str, tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> Any:
    """The family's own processor around `tokenizer`. `sizes`: fields of `Sizes`; Qwen's pictures are resized to
    multiples of 2 * `patch_size` between `min_pixels` and `max_pixels`."""
    builder = _builder(family)
    return builder.processor(tokenizer, Sizes(**sizes), builder.template)


def model_config(family: str, tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> Any:
    """A small config of a family (`sizes`: fields of `Sizes`). Embeddings are untied."""
    return _builder(family).config(tokenizer, Sizes(**sizes))


def _builder(family: str) -> Builder:
    builders = BUILDERS | MORE
    if family not in builders:
        raise ValueError(f"no config for family {family!r}; known: {', '.join(builders)}")
    return builders[family]


def random_model(config: Any, seed: int) -> Any:
    """A model of `config` with freshly initialised float32 weights; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        _wake(model)
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    return model.float().eval()


def _wake(model: Any) -> None:
    """Mend two starts that would hide what a tiny model is for: Gemma 3's projector is zero, so no picture comes
    through, and Qwen3.5's memories decay to nothing within two tokens, so no prompt does."""
    for name, parameter in model.named_parameters():
        if name.endswith(".A_log"):
            torch.nn.init.uniform_(parameter, -7.0, -2.0)
        elif parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


def random_policy_parts(family: str, seed: int = 0, **sizes: Any) -> tuple[Any, Any]:
    """(model, processor) of a family with random weights. `sizes`: fields of `Sizes`."""
    tokenizer = build_tokenizer(family=family)
    processor = build_processor(family, tokenizer, **sizes)
    return random_model(model_config(family, tokenizer, **sizes), seed), processor
