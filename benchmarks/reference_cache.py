"""Reference log-probabilities for a ladder of models: kept per answer (ours) or per data set (TRL).

python benchmarks/reference_cache.py [--models 7] [--quick]

m models answer the same prompts, which makes m (m - 1) / 2 pairings to tune on. Both sides make
the reference ready for one pairing, for all pairings one after the other, for the first one again
and for the first one at another learning rate: ours by `tune` with one cache, TRL by DPOTrainer
with precompute_ref_log_probs and its own cache on disk. The values of both must agree, or the
benchmark fails.

The last line is JSON: `scorings_per_prompt`, answers run through the model, and `seconds`, by
phase, for both sides. TRL's seconds are those of its forwards alone; ours are all from look-up to
write. `one_tree` is ours if all answers are at hand before the first run: every prompt once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

from common import (
    Lengths,
    Mix,
    answer_job,
    build_tokenizer,
    draw_lengths,
    draw_texts,
    in_child,
    machine,
    save_model,
    save_pairs,
    small_config,
    versions,
)
from sides import clocked_cache, our_run, trl_trainer

TOLERANCE = 1e-4  # relative, in float32
PROMPT, ANSWER = Lengths(150, 0.9), Lengths(300, 0.6)  # as in the mix ultrafeedback
PHASES = ("one_pairing", "all_pairings", "again", "other_lr")
RATES = (1e-6, 2e-6)


def main() -> None:
    options = parse()
    if options.job:
        answer_job(options.job, {"ours": ours, "trl": theirs})
        return
    about = {"machine": machine(), "versions": versions()}
    for name, values in about.items():
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    print(f"{options.models} models, {options.prompts} prompts", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        job = prepare(options, directory)
        found = {
            side: in_child(__file__, {**job, "side": side}, directory / side, options.threads)
            for side in ("trl", "ours")
        }
    result = summary(options, found)
    show(result)
    print(json.dumps({**result, **about, "models": options.models, "prompts": options.prompts}))
    if result["largest_difference"] > TOLERANCE:
        sys.exit("the reference log-probabilities of the two sides differ")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.max_length, options.scale = 2048, 1.0
    if options.quick:
        options.models, options.prompts, options.threads = 3, 2, 1
        options.hidden, options.layers, options.vocab = 64, 2, 512
        options.max_length, options.scale = 128, 1 / 16
    return options


def prepare(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Save model and pairings; the settings that both sides share."""
    config = small_config(options.hidden, options.layers, options.vocab, options.max_length)
    save_model(directory / "model", config, build_tokenizer(options.vocab), seed=0)
    mix = Mix(PROMPT, (ANSWER,) * options.models)
    lengths = draw_lengths(mix, options.prompts, options.max_length, 0, options.scale)
    rows = draw_texts(lengths, options.vocab, 0)
    files = []
    for better, worse in combinations(range(options.models), 2):
        files.append(str(directory / f"{better}-over-{worse}.parquet"))
        save_pairs(Path(files[-1]), [(p, a[better], a[worse]) for p, *a in rows])
    return {
        "model": str(directory / "model"),
        "files": files,
        "order": list(range(options.prompts)),
        "threads": options.threads,
        "max_length": options.max_length,
        "batch_size": 1,
        "trl_batch": 1,
        "steps": 1,
        "seed": 0,
        "dtype": "float32",
        "device": "cpu",
        "optimizer": "adamw",
        "gradient_checkpointing": False,
        "lora": None,
        "layout": "auto",
        "attention": "auto",
        "token_budget": 8192,
    }


def phases(files: list[str]) -> list[tuple[str, float, str]]:
    """(phase, lr, pairs file) of every run, in order."""
    first, *others = files
    return [
        ("one_pairing", RATES[0], first),
        *(("all_pairings", RATES[0], file) for file in others),
        ("again", RATES[0], first),
        ("other_lr", RATES[1], first),
    ]


def theirs(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer made ready, but not run, for every phase."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    counted, values = Phases(), []
    for phase, lr, file in phases(job["files"]):
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        trainer = trl_trainer({**job, "lr": lr}, file, model)
        counted.add(phase, trainer.scored, trainer.reference_seconds)
        rows = trainer.train_dataset
        values.append([list(rows["ref_chosen_logps"]), list(rows["ref_rejected_logps"])])
    return {**vars(counted), "values": values[: len(job["files"])]}


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """`tune` for one step in every phase, with one cache; then all answers in one go."""
    import torch

    torch.set_num_threads(job["threads"])
    counted, out = Phases(), Path(job["out"])
    with clocked_cache(out / "reference.sqlite") as cache:
        for run, (phase, lr, file) in enumerate(phases(job["files"])):
            before = cache.scored
            our_run({**job, "lr": lr}, file, out / str(run), cache)
            counted.add(phase, cache.scored - before, cache.ended - cache.began)
    return {**vars(counted), "one_tree": one_tree(job, out)}


class Phases:
    """Scored answers and seconds by phase."""

    def __init__(self) -> None:
        self.scored = dict.fromkeys(PHASES, 0)
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def add(self, phase: str, scored: int, seconds: float) -> None:
        self.scored[phase] += scored
        self.seconds[phase] += seconds
        if phase == "one_pairing":  # all pairings are the first one and the others
            self.add("all_pairings", scored, seconds)


def one_tree(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """All answers of every prompt in one go: seconds, and the values of each pairing."""
    from accelerate import Accelerator

    from deltalearn.lm.layout import Tree
    from deltalearn.lm.load import Placement, load_model, load_tokenizer
    from deltalearn.lm.locate import locate
    from deltalearn.lm.rows import choose_rows
    from deltalearn.tune import PairReader, prepare_examples
    from deltalearn.tune.reference import reference_logprobs

    student = locate(job["model"])
    model, tokenizer = load_model(student, Placement("cpu", "float32")), load_tokenizer(student)
    sides = []
    for file in job["files"]:
        examples, _ = prepare_examples(tokenizer, PairReader(file), job["max_length"])
        pairs = [examples[i] for i in range(len(examples))]
        sides.append(
            [[(p.prompt, p.chosen) for p in pairs], [(p.prompt, p.rejected) for p in pairs]]
        )
    answers = [answer for pair in sides for side in pair for answer in side]
    rows = choose_rows(model, [Tree(prompt, (answer,)) for prompt, answer in answers])
    with clocked_cache(out / "one-tree.sqlite") as cache:
        values = reference_logprobs(
            model, answers, cache, "", rows, job["token_budget"], Accelerator(cpu=True)
        )
        seconds, scored = cache.ended - cache.began, cache.scored
    shape = (len(sides), 2, len(job["order"]))
    return {"seconds": seconds, "scored": scored, "values": values.view(shape).tolist()}


def summary(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts per prompt, seconds, and how far the values are apart."""
    tree = found["ours"]["one_tree"]
    differences = [
        abs(a - b) / abs(b)
        for pair_a, pair_b in zip(tree["values"], found["trl"]["values"], strict=True)
        for side_a, side_b in zip(pair_a, pair_b, strict=True)
        for a, b in zip(side_a, side_b, strict=True)
    ]
    return {
        "scorings_per_prompt": {
            side: {phase: n / options.prompts for phase, n in ran["scored"].items()}
            for side, ran in found.items()
        },
        "seconds": {
            side: {phase: round(s, 3) for phase, s in ran["seconds"].items()}
            for side, ran in found.items()
        },
        "one_tree": {
            "scorings_per_prompt": tree["scored"] / options.prompts,
            "seconds": round(tree["seconds"], 3),
        },
        "largest_difference": float(f"{max(differences):.2g}"),
    }


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    print(f"{'':>14}{'scorings per prompt':>24}{'seconds':>24}")
    print(f"{'':>14}" + f"{'TRL':>12}{'ours':>12}" * 2)
    for phase in PHASES:
        cells = [
            result[what][side][phase]
            for what in ("scorings_per_prompt", "seconds")
            for side in ("trl", "ours")
        ]
        print(f"{phase:>14}" + "".join(f"{cell:>12,.6g}" for cell in cells))
    tree = result["one_tree"]
    print(f"{'in one tree':>14}{tree['scorings_per_prompt']:>24,.6g}{tree['seconds']:>24,.6g}")


if __name__ == "__main__":
    main()
