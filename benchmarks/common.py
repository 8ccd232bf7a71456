"""What the tuning benchmarks share: the machine, the model and its pairs, measuring, child runs."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import resource
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
SPECIALS = ("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PROMPT_OVERHEAD = 2  # the headers of both turns
GEMM_SIZES = (1024, 2048, 3072)
HEAD_DIM = 64


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in words, one token each: median, and sigma of the logarithm."""

    median: float
    sigma: float


@dataclass(frozen=True)
class Mix:
    """Lengths of prompts and of their answers: chosen and rejected, or one of each model."""

    prompt: Lengths
    answers: tuple[Lengths, ...]


Sizes = tuple[int, ...]  # words of a prompt and of each of its answers

# Short questions with a long tail under answers of a page, and long documents under short ones.
MIXES = {
    "ultrafeedback": Mix(Lengths(150, 0.9), (Lengths(350, 0.6), Lengths(300, 0.6))),
    "long-prompt": Mix(Lengths(1000, 0.3), (Lengths(300, 0.6), Lengths(250, 0.6))),
}


# The machine ------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, its cores open to this process, and the vector instructions that matter."""
    model, flags = platform.processor() or platform.machine(), set()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "flags": [name for name in known if name in flags]}


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def resident_mb() -> float:
    """Memory this process holds now, in MB of 10^6 bytes."""
    return _status("VmRSS")


def peak_mb() -> float:
    """Most memory this process has held, in MB of 10^6 bytes.

    Not ru_maxrss where /proc exists: that one survives exec, so a child would report the peak of
    the process that started it.
    """
    return _status("VmHWM")


def _status(key: str) -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def gemm_peak(
    threads: int, device: str = "cpu", dtype: str = "float32", sizes: Sequence[int] = GEMM_SIZES
) -> float:
    """Best FLOP/s of large square matrix products: what this machine can do at most."""
    import torch

    torch.set_num_threads(threads)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in "ab")
        a @ b
        for _ in range(5):
            wait()
            began = time.perf_counter()
            a @ b
            wait()
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


# The model and its pairs ------------------------------------------------------------------------


def lexicon() -> Iterator[str]:
    """Distinct words of letters: aaa, aab, ..."""
    for size in itertools.count(3):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=size))


def build_tokenizer(vocab: int) -> Any:
    """One token a word, so that a mix's lengths are exact; `vocab` tokens with the special ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIALS, *itertools.islice(lexicon(), vocab - len(SPECIALS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def small_config(hidden: int, layers: int, vocab: int, context: int) -> Any:
    """A Llama of the given width: heads of 64, grouped keys, tied embeddings as small models have.

    `hidden` must be a multiple of 64; 64 itself gets two heads of 32.
    """
    from transformers import LlamaConfig

    heads = max(2, hidden // HEAD_DIM)
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=math.ceil(hidden * 8 / 3 / 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 else 1,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )


def save_model(
    directory: Path,
    config: Any,
    tokenizer: Any,
    seed: int,
    device: str = "cpu",
    dtype: str = "float32",
) -> int:
    """Draw the weights of `config` and save a Hugging Face directory; returns their number."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return sum(p.numel() for p in model.parameters())


def draw_lengths(
    mix: Mix, prompts: int, max_length: int, seed: int, scale: float = 1.0
) -> list[Sizes]:
    """Words of each prompt and its answers, cut so that none exceeds `max_length` tokens.

    scale: a factor on the medians, for runs in seconds.
    """
    import numpy as np

    rng = np.random.default_rng(seed)

    def draw(lengths: Lengths) -> Any:
        drawn = rng.lognormal(math.log(lengths.median * scale), lengths.sigma, prompts)
        return np.maximum(4, drawn.round().astype(int))

    first = np.minimum(draw(mix.prompt), max_length * 3 // 4)
    room = max_length - first - PROMPT_OVERHEAD - 1
    columns = [first, *(np.minimum(draw(answer), room) for answer in mix.answers)]
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]


def draw_texts(lengths: Sequence[Sizes], vocab: int, seed: int) -> list[tuple[str, ...]]:
    """Words of the given numbers, drawn anew for every text.

    The first answer takes three in four words from the first half of the vocabulary, the last one
    in four: something to learn, so that losses that agree say more than ln 2.
    """
    import numpy as np

    rng = np.random.default_rng([seed, 1])
    words = np.array(list(itertools.islice(lexicon(), vocab - len(SPECIALS))))
    half = len(words) // 2
    shares = [0.5, *np.linspace(0.75, 0.25, len(lengths[0]) - 1)]

    def text(size: int, share: float) -> str:
        second = rng.random(size) >= share
        return " ".join(words[rng.integers(0, half, size) + half * second])

    return [tuple(map(text, sizes, shares)) for sizes in lengths]


def save_pairs(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write (prompt, chosen, rejected) texts in the format that both sides read."""
    from deltalearn.pairs import write_pairs
    from deltalearn.records import Pair, Response

    def answer(text: str) -> Response:
        return Response("", text, (), "stop", 0)

    pairs = [
        Pair(str(i), 0, ({"role": "user", "content": prompt},), answer(chosen), answer(rejected))
        for i, (prompt, chosen, rejected) in enumerate(rows)
    ]
    write_pairs(path, pairs, "strong", "weak")


# Useful work ------------------------------------------------------------------------------------


def tokens_of(lengths: Iterable[Sizes]) -> int:
    """Distinct tokens: every prompt once and its answers, with headers and ends."""
    return sum(PROMPT_OVERHEAD + sum(sizes) + len(sizes) - 1 for sizes in lengths)


def useful_flops(config: Any, lengths: Iterable[Sizes], weight_gradients: bool = True) -> float:
    """Operations no implementation of a step can do without, whatever its layout.

    Per matrix element and token 2 forward, 2 for the gradient of the input and, with
    `weight_gradients`, 2 for that of the weight. The body sees every prompt once and its answers;
    the head only answer tokens; a query meets only the keys it sees. What is computed twice
    (prompts, the head's tiles, checkpointed layers) or for padding counts once or not at all.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    keys = config.num_key_value_heads * width
    layer = 2 * hidden * heads * width + 2 * hidden * keys + 3 * hidden * config.intermediate_size
    body, head, seen = 0, 0, 0
    for words, *others in lengths:
        prompt, answers = words + PROMPT_OVERHEAD, [size + 1 for size in others]
        body += prompt + sum(answers)
        head += sum(answers)
        seen += prompt * (prompt + 1) // 2
        seen += sum(a * prompt + a * (a + 1) // 2 for a in answers)
    passes = 6 if weight_gradients else 4
    layers = config.num_hidden_layers
    return (
        passes * layer * layers * body
        + passes * hidden * config.vocab_size * head
        + 12 * layers * heads * width * seen  # 4 forward and 8 backward: there is no weight here
    )


# Child processes --------------------------------------------------------------------------------


class ChildFailed(SystemExit):
    """A measured process did not end well: its last words, with which the benchmark ends too."""


def in_child(
    script: str,
    job: dict[str, Any],
    directory: Path,
    threads: int,
    limit: float | None = None,
) -> dict[str, Any]:
    """Run `script --job FILE` as a process of its own and return the JSON that it leaves.

    Its memory and its warm caches are then its own. It gets `threads` threads, no network, and
    `limit` seconds if that is given.
    """
    directory.mkdir(parents=True, exist_ok=True)
    task, answer, log = (directory / name for name in ("job.json", "answer.json", "log.txt"))
    task.write_text(json.dumps({**job, "answer": str(answer), "out": str(directory / "out")}))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(directory / "datasets"),
        **job.get("environment", {}),
    }
    with log.open("w") as out:
        command = [sys.executable, script, "--job", str(task)]
        try:
            ended = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=limit
            )
            became = f"ended with {ended.returncode}" if ended.returncode else "left no answer"
        except subprocess.TimeoutExpired:
            became = f"was cut after {limit:.0f} s"
    if not answer.exists():
        tail = "\n".join(log.read_text().splitlines()[-25:])
        raise ChildFailed(f"{job.get('side')} {became}:\n{tail}")
    shutil.rmtree(directory / "out", ignore_errors=True)  # a tuned 8B model is 16 GB
    return json.loads(answer.read_text())


def answer_job(path: str, sides: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """The child's half of `in_child`: do the job at `path`, leave its answer."""
    job = json.loads(Path(path).read_text())
    answer = sides[job["side"]](job)
    Path(job["answer"]).write_text(json.dumps(answer))
