"""The two sides of a comparison, each to run in a process of its own: TRL's DPOTrainer and ours.

A job (JSON, from `common.in_child`) names model, pairs, their order, and all settings; an answer
has the loss, gradient norm and seconds of every step (the first one warms up), and memory.
"""

from __future__ import annotations

import gc
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import peak_mb, resident_mb

BETA = 5.0
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0


def _start(job: dict[str, Any]) -> None:
    import torch

    if job["device"] == "cpu":
        torch.set_num_threads(job["threads"])
    else:
        torch.cuda.reset_peak_memory_stats()


def _answer(job: dict[str, Any], times: list[float], records: list[dict[str, float]], **rest: Any):
    import torch

    peak = peak_mb() if job["device"] == "cpu" else torch.cuda.max_memory_allocated() / 1e6
    return {
        "step_seconds": [b - a for a, b in pairwise(times)],
        "losses": [r["loss"] for r in records],
        "grad_norms": [r["grad_norm"] for r in records],
        "peak_memory_mb": peak,
        **rest,
    }


# TRL --------------------------------------------------------------------------------------------


def run_trl(job: dict[str, Any]) -> dict[str, Any]:
    """Train with TRL's DPOTrainer: no evaluation, no saving, reference log-probs precomputed."""
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback

    class Clock(TrainerCallback):
        """The start, and each step's end and values, taken when the trainer has read its loss."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.records: list[dict[str, float]] = []

        def on_train_begin(self, args, state, control, **kwargs):
            self.times.append(time.perf_counter())

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:  # the summary at the end has none
                self.times.append(time.perf_counter())
                self.records.append(logs)

    _start(job)
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=getattr(torch, job["weights"]),
        attn_implementation=job["trl_attention"],
    )
    loaded = resident_mb() if job["device"] == "cpu" else None
    clock = Clock()
    trainer = trl_trainer(job, job["pairs_file"], model, callbacks=[clock])
    trainer.train()
    return _answer(
        job,
        clock.times,
        clock.records,
        loaded_memory_mb=loaded,
        reference_seconds=trainer.reference_seconds,
    )


def trl_trainer(job: dict[str, Any], pairs_file: str, model: Any, **options: Any) -> Any:
    """TRL's trainer for `model`, its reference log-probs ready, with a clock on their forwards.

    Its own options give the order (sequential, over rows laid in the order of our plan) and the
    loss (sigmoid_norm is dpo_norm). It counts in `scored` the answers its reference was run on.
    """
    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import DPOTrainer

    class Clocked(DPOTrainer):
        reference_seconds = 0.0
        scored = 0

        def compute_ref_log_probs(self, model, inputs):
            began = time.perf_counter()
            found = super().compute_ref_log_probs(model, inputs)
            if job["device"] == "cuda":
                torch.cuda.synchronize()
            self.reference_seconds += time.perf_counter() - began
            self.scored += len(inputs["input_ids"])
            return found

    data = load_dataset("parquet", data_files=pairs_file, split="train")
    torch.manual_seed(job["seed"])  # adapters are drawn next, on the CPU, as ours are
    return Clocked(
        model=model,
        args=trl_config(job),
        train_dataset=data.select(job["order"]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=_peft_config(job),
        **options,
    )


def trl_config(job: dict[str, Any]) -> Any:
    """DPOConfig of the job, without anything that takes time beside the steps themselves."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=job["out"],
        per_device_train_batch_size=job["trl_batch"],
        gradient_accumulation_steps=job["batch_size"] // job["trl_batch"],
        max_steps=job["steps"],
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim={"adamw": "adamw_torch_fused"}.get(job["optimizer"], job["optimizer"]),
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        loss_type=["sigmoid_norm"],
        beta=BETA,
        max_length=job["max_length"],
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
        gradient_checkpointing=job["gradient_checkpointing"],
        bf16=job["dtype"] == "bfloat16",
        use_cpu=job["device"] == "cpu",
        logging_steps=1,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_liger_kernel=job.get("trl_liger", False),
        seed=job["seed"],
    )


def _peft_config(job: dict[str, Any]) -> Any:
    if not job["lora"]:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=job["lora"],
        lora_alpha=2 * job["lora"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


# Ours -------------------------------------------------------------------------------------------


def run_ours(job: dict[str, Any]) -> dict[str, Any]:
    """Train through the public functions of `deltalearn.tune`; its log has the numbers."""
    from deltalearn.lm.load import Placement, load_model
    from deltalearn.lm.locate import locate
    from deltalearn.util.malloc import keep_freed_memory

    keep_freed_memory()  # as the command line does
    _start(job)
    loaded = None
    if job["device"] == "cpu":
        model = load_model(locate(job["model"]), Placement("cpu", job["dtype"]))
        loaded = resident_mb()
        del model
        gc.collect()
    out = Path(job["out"])
    with clocked_cache(Path(job.get("reference", out / "reference.sqlite"))) as cache:
        done = our_run(job, job["pairs_file"], out, cache)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return _answer(
        job,
        [0.0, *(r["seconds"] for r in records)],
        records,
        loaded_memory_mb=loaded,
        reference_seconds=cache.ended - cache.began,
        rows=done["rows"],
        said=done["said"],
    )


def our_run(job: dict[str, Any], pairs_file: str, out: Path, cache: Any) -> dict[str, Any]:
    """One run of `tune` on the pairs of a file."""
    from deltalearn.lm.load import Placement, load_tokenizer
    from deltalearn.lm.locate import ModelFiles
    from deltalearn.tune import PairReader, prepare_examples, train

    # Nothing is looked up by the model's content here, and reading 16 GB takes half a minute.
    student = ModelFiles(job["model"], Path(job["model"]), "drawn")
    rows = PairReader(pairs_file)
    examples, _ = prepare_examples(
        load_tokenizer(student), rows, job["max_length"], truncation="error"
    )
    placement = Placement(job["device"], job["dtype"])
    for saving in ("save_student", "check_written", "rehearse"):
        setattr(train, saving, lambda *_: None)  # TRL's side does not save either
    began = time.perf_counter()
    said: list[str] = []

    def say(line: str) -> None:  # with the time, since a short lease may be spent before a step
        said.append(f"{time.perf_counter() - began:.1f} s: {line}")

    done = train.tune(
        student, examples, tune_spec(job), job["seed"], out, reference=cache, placement=placement,
        say=say,
    )  # fmt: skip
    say("done")
    return {**done, "said": said}


def clocked_cache(path: Path) -> Any:
    """Our cache with a clock on the last reference phase: `began` at look-up, `ended` at write."""
    from deltalearn.tune import ReferenceCache

    class Clocked(ReferenceCache):
        began = ended = 0.0

        def known(self, keys):
            self.began = time.perf_counter()
            return super().known(keys)

        def flush(self):
            fresh = bool(self._fresh)
            super().flush()
            if fresh or self.ended < self.began:  # closing flushes once more
                self.ended = time.perf_counter()

    return Clocked(path)


def tune_spec(job: dict[str, Any]) -> Any:
    """TuneSpec of the job: the settings of `trl_config` in our words, and what is ours alone."""
    from deltalearn.recipe import TuneSpec

    settings = {
        "method": "dpo_norm",
        "beta": BETA,
        "lr": job["lr"],
        "batch_size": job["batch_size"],
        "steps": job["steps"],
        "scheduler": "constant",
        "warmup_ratio": 0.0,
        "optimizer": job["optimizer"],
        "max_grad_norm": MAX_GRAD_NORM,
        "max_length": job["max_length"],
        "truncation": "error",
        "layout": job["layout"],
        "token_budget": job["token_budget"],
        "gradient_checkpointing": job["gradient_checkpointing"],
        "checkpoint_every": job["steps"],
    }
    if job["attention"] != "auto":
        settings["attention"] = job["attention"]
    if job["optimizer"] != "adafactor":
        settings["adam_betas"] = BETAS
    if job["lora"]:
        settings["lora"] = {"r": job["lora"]}
    settings |= job.get("ours", {})
    return TuneSpec(**settings)
