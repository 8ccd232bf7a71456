"""What tuning one student would take: lengths, steps and memory, from files or assumptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from deltalearn.errors import UserError
from deltalearn.formats.rows import files_line
from deltalearn.lm.clock import today
from deltalearn.lm.locate import ModelFiles, locate_tokenizer
from deltalearn.lm.quantized import trained_as
from deltalearn.pipeline.generator import rendering_of
from deltalearn.pipeline.tune_inputs import (
    counts_text,
    read_config,
    read_examples,
)
from deltalearn.recipe import ExpectSpec, LoraSpec, ModelSpec, PairsSource, Recipe, TuneSpec
from deltalearn.tune.dataset import Examples
from deltalearn.tune.estimate import DryRun, draw_lengths, dry_run, known_config
from deltalearn.tune.fit import PairLengths, check_fit, config_obstacle
from deltalearn.tune.measure import ModelSize, measure_model
from deltalearn.tune.memory import GIB, estimate_memory, room_expected
from deltalearn.tune.train import split_held_out
from deltalearn.util.files import canonical_json
from deltalearn.util.paths import local_path


@dataclass(frozen=True)
class Student:
    """The model to tune, as far as it is here.

    Attributes:
        files: Its config and tokenizer; None where they are not on this disk.
        config: Read, or that of the assumed architecture.
        about: Which of both, in words.
    """

    files: ModelFiles | None
    config: PretrainedConfig
    about: str
    _sizes: dict[Any, tuple[ModelSize, ModelSize]] = field(default_factory=dict)

    def sizes(self, dtype: str, lora: LoraSpec | None) -> tuple[ModelSize, ModelSize]:
        """Measure the model whole and sharded; once, as an 8B model takes seconds."""
        key = dtype, lora and canonical_json(lora.model_dump())
        if key not in self._sizes:
            measured = [measure_model(self.config, dtype, lora, shard=s) for s in (False, True)]
            self._sizes[key] = measured[0], measured[1]
        return self._sizes[key]

    @classmethod
    def find(cls, spec: ModelSpec, expect: ExpectSpec | None) -> Student:
        """Find a student's config; without network where there is something to expect.

        Raises:
            UserError: If it is not to be had and nothing is to be expected.
        """
        try:
            place = spec.place, spec.revision, spec.chat_template
            files = locate_tokenizer(*place, network=expect is None)
            return cls(files, read_config(files), "config read")
        except UserError:
            if expect is None:
                raise
            about = f"not on this disk; ASSUMED: the architecture of {expect.architecture}"
            return cls(None, known_config(expect.architecture), about)


@dataclass(frozen=True)
class Lengths:
    """Lengths of the usable pairs, how they were found, and the pairs, if they were read."""

    pairs: PairLengths
    about: str
    examples: Examples | None = None


@dataclass(frozen=True)
class TuneEstimate:
    """Steps, work and memory of one tuning, with the model's sizes whole and sharded."""

    settings: TuneSpec
    dtype: str
    plan: DryRun
    sizes: tuple[ModelSize, ModelSize]
    warning: str | None

    def gib(self, gpus: int, device: str = "cuda") -> float:
        """Estimate GiB on each of `gpus` devices, with FSDP2 where the settings say so."""
        shard = self.settings.shard and gpus > 1
        size, tokens = self.sizes[shard], self.plan.largest_forward
        room = room_expected(device)[0]
        return (
            estimate_memory(
                size, self.settings, self.dtype, tokens=tokens, gpus=gpus, shard=shard,
                device=device, room=room,
            ).total
            / GIB
        )  # fmt: skip


def estimate_tuning(
    student: Student, lengths: Lengths, settings: TuneSpec, seed: int, dtype: str
) -> TuneEstimate:
    """Plan a tuning without weights. The dtype auto counts as bfloat16, as on a GPU.

    Raises:
        UserError: If the pairs do not fit the model or fill no batch, or if the model is stored in
            a way in which it cannot be trained.
    """
    if student.files is not None:
        trained_as(student.files, settings.lora.bits if settings.lora else None)
    examples, method = lengths.examples, settings.method
    largest = -1 if examples is None else examples.largest_id
    warning = check_fit(student.config, lengths.pairs, method, largest)
    train = None
    if examples is not None:
        train = split_held_out(examples, settings.eval_pairs or 0)[0]
    dtype = "bfloat16" if dtype == "auto" else dtype
    sizes = student.sizes(dtype, settings.lora)
    obstacle = config_obstacle(student.config, lengths.pairs, method)
    plan = dry_run(lengths.pairs, sizes[0], settings, seed, train=train, obstacle=obstacle)
    return TuneEstimate(settings, dtype, plan, sizes, warning)


def assumed_lengths(recipe: Recipe, settings: TuneSpec, limit: int | None, why: str) -> Lengths:
    """Draw the lengths that `recipe.expect` describes, of at most `limit` pairs.

    Why they are not counted is said in words.
    """
    expect = recipe.expect
    assert expect is not None
    medians = expect.prompt_tokens, expect.chosen_tokens, expect.rejected_tokens
    number = min(filter(None, (expect.pairs, settings.max_pairs, limit)))
    drawn = draw_lengths(number, medians, expect.spread, settings.max_length, recipe.seeds[0])
    about = (
        f"{why}; ASSUMED: {number:,} usable pairs with lognormal lengths, medians of "
        f"{medians[0]:,} (prompt), {medians[1]:,} (chosen) and {medians[2]:,} (rejected) tokens, "
        f"spread {expect.spread:g}, cut to {settings.max_length:,} tokens"
    )
    return Lengths(drawn, about)


def lengths_of_source(
    recipe: Recipe, settings: TuneSpec, pairs: PairsSource, student: ModelFiles | None
) -> Lengths:
    """Find the lengths of pairs from a source: counted where it can be had, or else assumed.

    Raises:
        UserError: If they are not to be had and the recipe has no `expect`.
    """
    here = local_path(pairs.source).exists()
    if student is not None and (here or recipe.expect is None):
        assert recipe.student is not None
        how = rendering_of(recipe.student, student, recipe.day or today())
        examples, counts = read_examples(pairs, settings, student, how)
        about = [counts_text(counts), files_line(pairs.source, pairs.split)]
        return Lengths(PairLengths.of(examples), "\n".join(filter(None, about)), examples)
    why = "its pairs are here, but not the tokenizer" if here else "not on this disk"
    return assumed_lengths(recipe, settings, pairs.limit, why)
