"""TRL's GRPOTrainer on the bench's work, as fast as its settings allow on a CPU. The only file that imports TRL.

Nothing of TRL is replaced: a subclass books CPU seconds around its own methods (each calls `super()`), a
subclass of the model's processor does the same, and a callback says when a step is over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fovea.bench.case import SIZES, PartClock, Work, full_length
from fovea.bench.ours import LEARNING_RATE, bench_reward, time_optimizer
from fovea.models import FAMILIES, Policy
from fovea.models.construct import random_policy_parts
from fovea.types import Problem, UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrlSettings:
    """What of GRPOConfig (and of the model) is tried for speed; the rest is the same on both sides.

    Example: TrlSettings(sequences_at_once=8, optimizer="adamw_torch_fused")
    """

    sequences_at_once: int = 8
    """per_device_train_batch_size; the rest of the step is gradient accumulation. Generation takes all at once."""
    optimizer: str = "adamw_torch_fused"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False

    def record(self) -> dict[str, Any]:
        return asdict(self)


def need_trl() -> str:
    """TRL's version. Raises UserError in one sentence when it is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise UserError(
            "TRL is not installed, so there is nothing to measure against; "
            "install it with `pip install 'fovea-rl[bench]'`."
        )
    from importlib.metadata import version

    return version("trl")


class TheirSteps:
    """A random model of the same weights in a GRPOTrainer.

    `run(problems, each)` trains; after each optimizer step `each(index)` is called, outside of what is measured, and
    stops the training by returning False.
    """

    def __init__(self, work: Work, settings: TrlSettings) -> None:
        need_trl()
        self.work, self.settings = work, settings
        self.model, self.processor = random_policy_parts(work.family, work.seed, **SIZES)
        self.bans = _bans(work, self.model, self.processor)
        self.model.set_attn_implementation(settings.attention)
        self.clock = PartClock()
        self.seconds: list[float] = []
        """CPU seconds of each step: from the end of the one before, so that nothing of it is left out."""
        self.sampled: list[int] = []
        """Tokens sampled by step."""
        self.prompt_ids: list[list[int]] = []
        """Of the last step, one a sequence."""

    def run(
        self,
        problems: Sequence[Problem],
        each: Callable[[int], bool],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """One pass over the problems, `work.prompts` a step, in order. `begin` is called before the first step."""
        with tempfile.TemporaryDirectory() as folder, _quiet():
            trainer = self._trainer(problems, folder, each, begin)
            trainer.train()

    def _trainer(
        self,
        problems: Sequence[Problem],
        folder: str,
        each: Callable[[int], bool],
        begin: Callable[[], None],
    ) -> Any:
        from transformers.trainer_callback import PrinterCallback

        trainer = _timed_trainer(self)(
            model=self.model,
            reward_funcs=[self._reward],
            args=self._config(folder, len(problems) // self.work.prompts),
            train_dataset=_dataset(problems),
            processing_class=_timed_processor(self.processor, self.clock),
            callbacks=[_after_each_step(self, each, begin)],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _config(self, folder: str, steps: int) -> Any:
        from trl.trainer.grpo_config import GRPOConfig

        settings, work = self.settings, self.work
        accumulation, rest = divmod(work.sequences, settings.sequences_at_once)
        if rest:
            raise UserError(
                f"{work.sequences} sequences a step cannot be cut into micro-batches of "
                f"{settings.sequences_at_once}; take a divisor."
            )
        return GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=settings.gradient_checkpointing,
            per_device_train_batch_size=settings.sequences_at_once,
            gradient_accumulation_steps=accumulation,
            num_generations=work.group,
            max_completion_length=work.response_tokens,
            # TRL bans the picture token itself; the others as on our side, end of turn included
            generation_kwargs={"suppress_tokens": self.bans},
            max_steps=steps,
            shuffle_dataset=False,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim=settings.optimizer,
            weight_decay=0.0,
            max_grad_norm=1.0,
            beta=0.0,
            loss_type="grpo",
            temperature=1.0,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=work.seed,
        )

    def _reward(self, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        self.sampled.append(sum(map(len, completion_ids)))
        return [bench_reward(str(completion)) for completion in completions]


def _bans(work: Work, model: Any, processor: Any) -> list[int]:
    """Token ids that our side never samples in this work."""
    policy = Policy(model=model, processor=processor, family=FAMILIES[work.family])  # only to ask it
    return list(policy.bans(full_length(policy, work)))


def _dataset(problems: Sequence[Problem]) -> Any:
    """A dataset whose pictures are already decoded, as on our side: `Dataset` would store and decode PNGs."""
    from datasets import Dataset

    def show(rows: dict[str, list[int]]) -> dict[str, list[Any]]:
        chosen = [problems[i] for i in rows["index"]]
        return {
            "prompt": [[{"role": "user", "content": problem.question}] for problem in chosen],
            "images": [list(problem.images) for problem in chosen],
        }

    return Dataset.from_dict({"index": list(range(len(problems)))}).with_transform(show)


def _timed_processor(processor: Any, clock: PartClock) -> Any:
    """The same processor; CPU seconds of its calls are booked as "image and text"."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with clock.part("image and text"):
            return type(processor).__call__(self, *args, **kwargs)

    timed = type(type(processor).__name__, (type(processor),), {"__call__": call})
    parts = {name: getattr(processor, name) for name in processor.get_attributes()}
    return timed(**parts, chat_template=processor.chat_template)


def _timed_trainer(steps: TheirSteps) -> Any:
    from trl.trainer.grpo_trainer import GRPOTrainer

    clock = steps.clock

    class TimedTrainer(GRPOTrainer):
        """Books the CPU seconds of TRL's own methods. The optimizer's are booked by its hooks."""

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            steps.prompt_ids = [list(map(int, ids)) for ids in prompt_ids]
            with clock.part("generate"):
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)

        def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
            with clock.part("other"):
                return super()._prepare_inputs(*args, **kwargs)

        def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            with clock.part("loss forward"):
                return super()._compute_loss(*args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with clock.part("backward"):  # what is left of it without the parts inside
                return super().training_step(*args, **kwargs)

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            optimizer = super().create_optimizer(*args, **kwargs)
            time_optimizer(optimizer, clock)
            return optimizer

    return TimedTrainer


def _after_each_step(steps: TheirSteps, each: Callable[[int], bool], begin: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    class AfterEachStep(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            begin()
            self._begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.seconds.append(time.process_time() - self._since)
            if not each(int(state.global_step) - 1):
                control.should_training_stop = True
            self._begin()

        def _begin(self) -> None:
            steps.clock.take()
            self._since = time.process_time()

    return AfterEachStep()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' reports: their deprecation warnings are not the reader's."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
