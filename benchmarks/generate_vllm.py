"""What orchestration costs: our vLLM engine, its store included, against `LLM.generate` alone.

python benchmarks/generate_vllm.py [--python PATH] [--requests 5000] [--rounds 3]

Both sides answer the same conversations with the same random Llama, engine options and greedy
sampling, in the same vLLM (--python; default: the one of `make test`). Raw is what a short script
does: chat template and tokenizer, `LLM.generate` on ids, text by vLLM. Ours is the stage `generate`
with the vLLM engine: keys, chat template, tokenizer, the worker's process, text, and every answer
in SQLite. Each side is a process that loads its model once and is warm before the first round;
clocks run from the first look at a round's conversations until all answers are there, for ours in a
store that is closed. Loading the model and ending the process are thus left out on both sides.
Rounds alternate in which side begins and have conversations of their own, so that no side finds
prompts in its prefix cache. The ids of all answers must agree, or the benchmark fails.

The last line is JSON: `seconds` of both sides by round, `overhead` (ours over raw, minus 1, of the
medians; the target is at most 0.05), `requests_per_s` and `tokens_per_s` of answers (ours), and
`cores_busy_elsewhere`: what other processes used meanwhile, without which no time means anything.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from common import (
    PROMPT_OVERHEAD,
    ChildFailed,
    Lengths,
    Mix,
    build_tokenizer,
    draw_lengths,
    draw_texts,
    machine,
    save_model,
    small_config,
    versions,
)

MADE = Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"
WARM_UP = 256  # requests, untimed
TARGET = 0.05
ENDING = 60  # seconds for a side to end by itself
PAUSE = 5.0  # seconds before a side answers: vLLM spins for a while when it has done its work

Answer = Callable[[Path], dict[str, Any]]  # a file of conversations to seconds and ids


# The two sides, each in a process of its own ----------------------------------------------------


def ours(job: dict[str, Any]) -> Answer:
    """The stage `generate` with the vLLM engine."""
    from deltalearn.generate.engines.vllm_offline import VllmEngine, VllmOptions
    from deltalearn.generate.stage import generate
    from deltalearn.lm.locate import locate
    from deltalearn.records import Prompt, Sampling
    from deltalearn.responses.requests import RequestPlan, Settings
    from deltalearn.responses.store import ResponseStore

    files = locate(job["model"])
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=job["max_tokens"])
    engine = VllmEngine(files, sampling, VllmOptions(job["python"], job["engine"]))
    engine.start()
    atexit.register(engine.close)
    engine.close = lambda: None  # the worker is wanted in the next round

    def answer(conversations: Path) -> dict[str, Any]:
        rows = json.loads(conversations.read_text())
        began = time.perf_counter()
        prompts = [Prompt(str(i), tuple(messages)) for i, messages in enumerate(rows)]
        requests = list(RequestPlan(files.fingerprint, prompts, Settings(sampling)))
        with ResponseStore(conversations.with_suffix(".sqlite")) as store:
            generate(store, requests, lambda: engine, title="benchmark")
        seconds = time.perf_counter() - began
        with ResponseStore(store.path) as store:
            found = store.get(request.key for request in requests)
        return {"seconds": seconds, "ids": [list(found[r.key].token_ids) for r in requests]}

    return answer


def raw(job: dict[str, Any]) -> Answer:
    """A script around `LLM.generate`."""
    from vllm import LLM, SamplingParams

    model = LLM(job["model"], generation_config="vllm", **job["engine"])
    tokenizer = model.get_tokenizer()
    sampling = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])

    def answer(conversations: Path) -> dict[str, Any]:
        rows = json.loads(conversations.read_text())
        began = time.perf_counter()
        texts = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
        prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = [o.outputs[0] for o in model.generate(asked, sampling, use_tqdm=False)]
        seconds = time.perf_counter() - began
        ended = tokenizer.eos_token_id
        ids = [[i for i in output.token_ids if i != ended] for output in outputs]
        return {"seconds": seconds, "ids": ids}

    return answer


def serve(path: str) -> None:
    """The child's half of `Side`: what is needed is loaded, then a file is answered for each line.

    Its own imports are those of whatever Python has vLLM.
    """
    job = json.loads(Path(path).read_text())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to standard error
    answer = {"ours": ours, "raw": raw}[job["side"]](job)
    vllm = {"vllm": sys.modules["vllm"].__version__} if "vllm" in sys.modules else {}
    print(json.dumps(versions() | vllm), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(Path(line.strip()))), file=out, flush=True)


class Side:
    """A side's process, which answers one round after the other."""

    def __init__(self, python: str, job: dict[str, Any], directory: Path) -> None:
        """Returns when the side is ready; `versions` are those of its packages."""
        self._name, self._log = job["side"], directory / f"{job['side']}.txt"
        self._directory = directory
        task = directory / f"{self._name}.json"
        task.write_text(json.dumps(job))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, __file__, "--job", str(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ, "HF_HUB_OFFLINE": "1"},
            )
        self.versions = self._heard()

    def answer(self, conversations: Path) -> dict[str, Any]:
        """Seconds and ids of a round."""
        copy = self._directory / f"{self._name}-{conversations.name}"
        copy.write_bytes(conversations.read_bytes())
        time.sleep(PAUSE)
        self._process.stdin.write(f"{copy}\n")
        self._process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        if line := self._process.stdout.readline():
            return json.loads(line)
        tail = "\n".join(self._log.read_text().splitlines()[-25:])
        raise ChildFailed(f"{self._name} ended with {self._process.wait()}:\n{tail}")

    def close(self) -> None:
        """End the process and all that it started."""
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


# The comparison ---------------------------------------------------------------------------------


def main() -> None:
    options = parse()
    if options.job:
        serve(options.job)
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(options, Path(temporary))
    print(json.dumps(found))
    if found["different_answers"]:
        raise SystemExit("the two sides did not give the same answers")


def compare(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run all rounds; what the last line says."""
    context = options.prompt_limit + PROMPT_OVERHEAD + options.max_tokens
    config = small_config(options.hidden, options.layers, options.vocab, context)
    config.initializer_range, config.tie_word_embeddings = 0.05, False  # answers that vary
    model = str(directory / "model")
    size = save_model(Path(model), config, build_tokenizer(options.vocab), options.seed)
    print(f"model: {size / 1e6:.1f}M parameters")
    engine = {"dtype": "float32", "enforce_eager": True, "max_model_len": context}
    job = {"model": model, "engine": engine, "max_tokens": options.max_tokens}
    interpreters = {"ours": sys.executable, "raw": options.python}
    sides: dict[str, Side] = {}
    try:
        for name, python in interpreters.items():
            sides[name] = Side(python, {**job, "side": name, "python": options.python}, directory)
        rounds = play(options, sides, directory)
    finally:
        for side in sides.values():
            side.close()
    return {
        **summary(rounds, options.requests),
        "machine": machine(),
        "versions": {name: side.versions for name, side in sides.items()},
        "settings": {k: v for k, v in vars(options).items() if k != "job"},
        "parameters": size,
    }


def play(
    options: argparse.Namespace, sides: dict[str, Side], directory: Path
) -> list[dict[str, dict[str, Any]]]:
    """Answers of both sides by round, the one that warms up left out."""
    rounds = []
    for number in range(options.rounds + 1):
        count = options.requests if number else WARM_UP
        conversations = directory / f"round{number}.json"
        conversations.write_text(json.dumps(draw(options, count, options.seed + number)))
        order = list(sides) if number % 2 else list(reversed(sides))
        found = {name: watched(partial(sides[name].answer, conversations)) for name in order}
        if number:
            shown = ", ".join(f"{name} {found[name]['seconds']:.1f} s" for name in order)
            print(f"round {number}: {shown}", flush=True)
            rounds.append(found)
    return rounds


def watched(answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `answer` returns, with the cores that processes other than ours kept busy meanwhile."""

    def elsewhere() -> float:
        ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
        spent = sum(p.cpu_times().user + p.cpu_times().system for p in ours)
        every = psutil.cpu_times()
        return every.user + every.nice + every.system + every.irq + every.softirq - spent

    began, before = time.perf_counter(), elsewhere()
    found = answer()
    return {**found, "elsewhere": (elsewhere() - before) / (time.perf_counter() - began)}


def draw(options: argparse.Namespace, count: int, seed: int) -> list[list[dict[str, str]]]:
    """Conversations of one turn, random words in it."""
    mix = Mix(Lengths(options.prompt_median, 0.6), ())
    lengths = draw_lengths(mix, count, options.prompt_limit * 4 // 3, seed)
    texts = draw_texts(lengths, options.vocab, seed)
    return [[{"role": "user", "content": text}] for (text,) in texts]


def summary(rounds: list[dict[str, dict[str, Any]]], requests: int) -> dict[str, Any]:
    """The figures of the comparison."""

    def per_round(key: str) -> dict[str, list[float]]:
        return {side: [round(found[side][key], 2) for found in rounds] for side in ("ours", "raw")}

    seconds = per_round("seconds")
    middle = {name: median(values) for name, values in seconds.items()}
    different = sum(
        one != other
        for found in rounds
        for one, other in zip(found["ours"]["ids"], found["raw"]["ids"], strict=True)
    )
    tokens = sum(map(len, rounds[0]["ours"]["ids"]))
    overhead = middle["ours"] / middle["raw"] - 1
    return {
        "overhead": round(overhead, 4),
        "within_target": overhead <= TARGET,
        "seconds": seconds,
        "cores_busy_elsewhere": per_round("elsewhere"),
        "requests_per_s": round(requests / middle["ours"], 1),
        "tokens_per_s": round(tokens / middle["ours"]),
        "different_answers": different,
        "distinct_answers": len({tuple(ids) for ids in rounds[0]["ours"]["ids"]}),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=str(MADE), help="an interpreter that has vLLM")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--prompt-median", type=int, default=60, help="words, a token each")
    parser.add_argument("--prompt-limit", type=int, default=222, help="words")
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64, over 64")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not Path(options.python).exists():
        parser.error(f"{options.python}: no such Python; `make .venv-vllm/.installed` makes one")
    return options


if __name__ == "__main__":
    main()
