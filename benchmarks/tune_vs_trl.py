"""Preference tuning on a CPU: our engine against TRL's DPOTrainer, on the same work.

python benchmarks/tune_vs_trl.py [--mix ultrafeedback long-prompt] [--quick]

Both sides tune the same randomly drawn Llama on the same pairs in the same order, with the same
loss (length-normalised DPO, beta 5), AdamW, precision and cached reference, each in a process of
its own; TRL with the micro-batch that a probe found fastest. --dtype bfloat16 is mixed precision
for both (float32 weights under autocast), for processors with AVX-512 BF16 or AMX. The losses and
gradient norms of all steps must agree, or the benchmark fails: then the two did not do the same
work.

The last line is JSON: for the first mix `tokens_per_s`, `pairs_per_s` and `peak_memory_mb` of both
sides, `ratio` (our pairs/s over TRL's) and `gemm_share` (of the machine's measured matrix-product
peak, counting only work that no implementation can leave out); and the same for every mix under
`mixes`. Tokens are distinct ones, every prompt counted once, for both sides alike. Where the probe
ran, `ratio_to_trl_defaults` compares with TRL as it comes: micro-batch 8, gradient checkpointing.

The default model has 11M parameters because a CPU is slow; its head costs 2.9 of the body per
answer token (1.0 with --hidden 384 --layers 8; 0.3 to 0.4 with a billion parameters), and what a
head costs is where two implementations differ most, so try both. --trl-keeps-memory shows what of
the difference is the C library's handling of freed memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from common import (
    GEMM_SIZES,
    MIXES,
    answer_job,
    build_tokenizer,
    gemm_peak,
    machine,
    save_model,
    small_config,
    versions,
)
from contest import Contest, exit_unless_agreed
from sides import run_ours, run_trl

TOLERANCE = {  # relative; bfloat16 keeps 8 bits
    "float32": {"losses": 1e-4, "grad_norms": 1e-3},
    "bfloat16": {"losses": 2e-2, "grad_norms": 1e-1},
}
REPEATED = (
    "pairs",
    "batch_size",
    "steps",
    "max_length",
    "hidden",
    "layers",
    "vocab",
    "threads",
    "seed",
    "dtype",
    "layout",
    "attention",
    "token_budget",
)


def main() -> None:
    options = parse()
    if options.job:
        answer_job(options.job, {"ours": run_ours, "trl": run_trl})
        return
    settings = {name: getattr(options, name) for name in REPEATED}
    about = {"machine": machine(), "versions": versions(), "settings": settings}
    for name, values in about.items():
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        config = small_config(options.hidden, options.layers, options.vocab, options.max_length)
        parameters = save_model(
            directory / "model", config, build_tokenizer(options.vocab), options.seed
        )
        print(f"model: {parameters / 1e6:.1f}M parameters")
        contest = Contest(
            script=__file__,
            settings={
                **settings,
                "model": str(directory / "model"),
                "lr": 1e-3,
                "weights": "float32",
                "device": "cpu",
                "optimizer": "adamw",
                "gradient_checkpointing": False,
                "lora": None,
                "trl_batch": options.trl_batch,
                "trl_attention": "sdpa",
            },
            config=config,
            gemm=partial(gemm_peak, options.threads, dtype=options.dtype, sizes=options.gemm),
            tolerance=TOLERANCE[options.dtype],
            only=options.only,
            scale=options.scale,
            rounds=options.rounds,
            trl_keeps_memory=options.trl_keeps_memory,
        )
        mixes = {mix: contest.run(mix, directory / mix) for mix in options.mix}
    print(json.dumps({**mixes[options.mix[0]], **about, "parameters": parameters, "mixes": mixes}))
    exit_unless_agreed(mixes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--pairs", type=int, help="default: as many as the steps need")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs a step")
    parser.add_argument("--steps", type=int, default=4, help="the first one warms up, untimed")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=list(TOLERANCE), help="default: bfloat16 where the processor has it"
    )
    parser.add_argument("--layout", default="auto", help="of ours")
    parser.add_argument("--attention", default="auto", help="of ours")
    parser.add_argument("--token-budget", type=int, default=4096, help="of ours, for a forward")
    parser.add_argument("--trl-batch", type=int, help="TRL's micro-batch; default: the fastest")
    parser.add_argument(
        "--trl-keeps-memory",
        action="store_true",
        help="also run TRL with glibc told to keep freed memory, which our command line does",
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side, in turn")
    parser.add_argument("--only", choices=["ours", "trl"], help="run one side, compare nothing")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    low = {"avx512_bf16", "amx_bf16"} & set(machine()["flags"])
    options.dtype = options.dtype or ("bfloat16" if low and not options.quick else "float32")
    options.scale, options.gemm = 1.0, GEMM_SIZES
    if options.quick:
        options.scale, options.gemm = 1 / 16, (256,)
        options.hidden, options.layers, options.vocab = 64, 2, 512
        options.batch_size, options.steps, options.max_length = 4, 3, 128
        options.threads, options.trl_batch = 1, options.trl_batch or 2
    needed = options.batch_size * options.steps
    options.pairs = options.pairs or needed
    if options.steps < 2 or options.pairs < needed:
        parser.error(
            f"{options.steps} steps, the first to warm up, need --steps 2 or more and "
            f"--pairs {needed} or more"
        )
    return options


if __name__ == "__main__":
    main()
