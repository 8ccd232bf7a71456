"""Preference tuning of an 8B-shaped model on one GPU: our engine against TRL's DPOTrainer.

python benchmarks/tune_vs_trl_gpu.py [--mode lora full] [--shape 8b] [--tiny]

The comparison of tune_vs_trl.py at the size that matters, without a network: the model has the
shape of Llama 3.1 8B, random weights, and as many words as its vocabulary has tokens. bfloat16
with gradient checkpointing; TRL with its fused head (Triton), which is its default on a GPU, and
the fastest micro-batch; `full` with an optimiser that fits one GPU, if its memory takes weights
and gradients in float32, 64 GB for 8b. Memory is what PyTorch allocated on the device. --tiny runs
all of it on a CPU, to show that it runs.

The last line is JSON as of tune_vs_trl.py, with the mixes of each mode under `modes`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import (
    MIXES,
    answer_job,
    build_tokenizer,
    gemm_peak,
    in_child,
    machine,
    save_model,
    versions,
)
from contest import Contest, exit_unless_agreed
from sides import run_ours, run_trl

SHAPES: dict[str, dict[str, Any]] = {  # of Llama 3.1 8B, 3.2 3B and 1B, and one for tests
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
           "tie_word_embeddings": False},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
           "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256,
           "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
           "tie_word_embeddings": True},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
             "tie_word_embeddings": False},
}  # fmt: skip
TOLERANCE = {  # relative; bfloat16 keeps 8 bits
    "float32": {"losses": 1e-4, "grad_norms": 1e-3},
    "bfloat16": {"losses": 2e-2, "grad_norms": 1e-1},
}
REPEATED = (
    "pairs",
    "batch_size",
    "steps",
    "max_length",
    "threads",
    "seed",
    "device",
    "dtype",
    "layout",
    "attention",
    "token_budget",
    "trl_attention",
    "gradient_checkpointing",
)


def main() -> None:
    options = parse()
    if options.job:
        answer_job(options.job, {"ours": run_ours, "trl": run_trl, "build": build})
        return
    settings = settings_of(options)
    about = {
        "machine": machine(),
        "versions": versions(),
        "settings": {"shape": options.shape, **settings},
    }
    for name, values in about.items():
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        directory = Path(temporary)
        settings["model"] = str(directory / "model")
        job = {**settings, "shape": options.shape, "side": "build"}
        built = in_child(__file__, job, directory / "build", options.threads)
        print(f"model: {built['parameters'] / 1e9:.2f}B parameters on {built['gpu'] or 'a CPU'}")
        modes = {
            mode: compare(options, settings, mode, built["gemm"], directory)
            for mode in options.mode
        }
    first = modes[options.mode[0]][options.mix[0]]
    print(json.dumps({**first, **about, **built, "modes": modes}))
    exit_unless_agreed({f"{a} {b}": m for a, mixes in modes.items() for b, m in mixes.items()})


def compare(
    options: argparse.Namespace,
    settings: dict[str, Any],
    mode: str,
    gemm: float,
    directory: Path,
) -> dict[str, Any]:
    """All mixes with adapters or with all weights."""
    contest = contest_of(options, settings, mode, gemm)
    print(f"\n{mode}: {contest.settings['optimizer']}", flush=True)
    return {mix: contest.run(mix, directory / mode / mix) for mix in options.mix}


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What both sides are told, as far as it is an option."""
    return {name: getattr(options, name) for name in REPEATED}


def contest_of(
    options: argparse.Namespace,
    settings: dict[str, Any],
    mode: str,
    gemm: float,
    limit: Callable[[], float | None] = lambda: None,
) -> Contest:
    """The comparison of one mode on the model of `settings`; `limit` gives a child's seconds."""
    lora = mode == "lora"
    return Contest(
        script=__file__,
        settings={
            **settings,
            "lr": 1e-4 if lora else 1e-5,
            "weights": "bfloat16" if options.dtype == "bfloat16" and lora else "float32",
            "optimizer": "adamw" if lora else options.optimizer,
            "lora": options.rank if lora else None,
            "trl_batch": options.trl_batch,
        },
        config=config_of(options.shape, options.max_length),
        gemm=lambda: gemm,
        tolerance=TOLERANCE[options.dtype],
        only=options.only,
        scale=1 / 16 if options.tiny else 1.0,
        limit=limit,
    )


def config_of(shape: str, context: int) -> Any:
    """LlamaConfig of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Measure the device, then draw the model on it and save it.

    In a process of its own, so that the one that starts the sides holds nothing on the device.
    """
    import torch

    device, dtype, config = job["device"], job["dtype"], config_of(job["shape"], job["max_length"])
    on_gpu = device == "cuda"
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "gemm": gemm_peak(job["threads"], device, dtype, (4096, 8192) if on_gpu else (256,)),
        "parameters": save_model(
            Path(job["model"]),
            config,
            build_tokenizer(config.vocab_size),
            job["seed"],
            device,
            dtype,
        ),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--mix", nargs="+", choices=list(MIXES), default=["ultrafeedback"])
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument(
        "--optimizer", choices=["adafactor", "adamw_8bit"], default="adafactor", help="of mode full"
    )
    parser.add_argument("--rank", type=int, default=16, help="of mode lora")
    parser.add_argument("--pairs", type=int, help="default: as many as the steps need")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a step")
    parser.add_argument("--steps", type=int, default=4, help="the first one warms up, untimed")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", default="auto", help="of ours")
    parser.add_argument("--attention", default="auto", help="of ours")
    parser.add_argument("--token-budget", type=int, default=16384, help="of ours, for a forward")
    parser.add_argument("--trl-batch", type=int, help="TRL's micro-batch; default: the fastest")
    parser.add_argument("--trl-attention", default="sdpa", help="of transformers, for TRL")
    parser.add_argument("--only", choices=["ours", "trl"], help="run one side, compare nothing")
    parser.add_argument("--work", help="where the model's files go, 16 GB for 8b; default: $TMPDIR")
    parser.add_argument("--tiny", action="store_true", help="on a CPU: only shows that it runs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.device, options.dtype, options.gradient_checkpointing = "cuda", "bfloat16", True
    if options.tiny:
        options.device, options.dtype, options.shape = "cpu", "float32", "tiny"
        options.batch_size, options.steps, options.max_length, options.threads = 4, 3, 128, 1
        options.trl_batch = options.trl_batch or 2
    elif not options.job:
        require_gpu()
    needed = options.batch_size * options.steps
    options.pairs = options.pairs or needed
    if options.steps < 2 or options.pairs < needed:
        parser.error(
            f"{options.steps} steps, the first to warm up, need --steps 2 or more and "
            f"--pairs {needed} or more"
        )
    return options


def require_gpu() -> None:
    """Say what is missing before minutes are spent."""
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            "this benchmark needs a CUDA GPU and a PyTorch built for it; "
            "--tiny runs its code on a CPU, tune_vs_trl.py is the comparison on a CPU"
        )


if __name__ == "__main__":
    main()
