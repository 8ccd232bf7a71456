"""Protects the paper's run: `recipes/tulu3-8b.yaml`, with tiny models and few items, as a whole.

Once through a real vLLM; and once more, killed at ten moments, which must change no pair and no
score, and cost nothing twice but what was in flight. A dry run foretells what it takes.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.cli import deltalearn
from helpers.data import DATA, ROOT, drop_data
from helpers.fault_server import FaultServer, Reply, answer_to
from helpers.tiny_evaluated import WORDS, make

pytest.importorskip("lm_eval")

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(1800)]

MADE = ROOT / ".venv-vllm" / "bin" / "python"
RECIPE = "tulu3-8b"
AVERAGE = "average of the 11"
ARMS = ("base", "delta", "sft", "reversed", "tulu3_preference")
TUNED = ARMS[1:]
ASKED = ("qwen3b", "qwen1.5b")
ROWS, BATCH = 24, 4  # of the preference data; of tuning
LIMIT = 5  # items of a benchmark: the fewest that have a length-controlled win rate
BATCH_SIZE = 2  # of evaluation
GROUP = 4 * BATCH_SIZE  # requests of an evaluation that a kill may cost
HFLM = "lm_eval.models.huggingface"
VLLM = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
TOKEN_BUDGET = 256  # some prompts to a batch
# At each of these, in this order, the run is killed once: random ones of the answers, training
# steps, outputs of evaluated models and verdicts that there will be.
MOMENTS = (
    "answers", "answers", "steps", "steps", "steps",
    "outputs", "verdicts", "outputs", "verdicts", "outputs",
)  # fmt: skip


# -- the recipe, scaled down ----------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """Where the models and the data are, and what of the recipe is another."""

    folder: Path
    changes: list[str]

    def of(self, judge: FaultServer, *changes: str) -> list[str]:
        """All changes, as `--set` takes them."""
        url = f"evaluate.judge.url={judge.url}"
        return [*self.changes, url, *changes]

    def run(self, judge: FaultServer, out: Path, *changes: str, options: tuple[str, ...] = ()):
        """The command line, in a process of its own."""
        sets = [part for change in self.of(judge, *changes) for part in ("--set", change)]
        command = [sys.executable, "-m", "deltalearn", "run", RECIPE, "--out", str(out)]
        return subprocess.run(
            [*command, *sets, *options], capture_output=True, text=True, timeout=1500,
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        )  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    rng = random.Random(12)
    student = make(folder / "student")
    weak = {name: disturbed(student, folder / name, at) for at, name in enumerate(ASKED)}
    mixture = folder / "mixture"
    mixture.mkdir()
    rows = "".join(json.dumps(preference(rng)) + "\n" for _ in range(ROWS))
    (mixture / "train.jsonl").write_text(rows)
    data = folder / "data"
    data.mkdir()
    for source in DATA.iterdir():
        if not source.name.startswith("drop"):
            (data / source.name).symlink_to(source)
    drop_data(data)
    models = {name: {"path": str(path)} for name, path in weak.items()}
    changes = {
        "device": "cpu",
        "dtype": "float32",
        "student.path": str(student),
        "models": models,
        "prompts.source": str(mixture),
        "prompts.split": None,  # of files, which know none
        "prompts.limit": ROWS,
        "generate.max_tokens": 24,
        "tune.batch_size": BATCH,
        "tune.lr": 1e-4,
        "tune.shard": False,
        "tune.checkpoint_every": 1,
        "arms.sft.tune.batch_size": BATCH,
        "arms.sft.tune.lr": 3e-4,
        "arms.tulu3_preference.pairs.source": str(mixture),
        "arms.tulu3_preference.pairs.split": None,
        "arms.tulu3_preference.tune.batch_size": BATCH,
        "arms.tulu3_preference.tune.lr": 2e-4,
        "evaluate.limit": LIMIT,
        "evaluate.data_dir": str(data),
        "evaluate.backend": {"kind": "hf", "batch_size": BATCH_SIZE},
        "evaluate.judge.concurrency": 1,
        "evaluate.bootstrap": 200,
        "expect": None,
    }
    return Small(folder, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def disturbed(student: Path, out: Path, seed: int) -> Path:
    """A model that answers other than `student` does; its directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(student)
    random_numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=random_numbers)
            weight.add_(noise * weight.std() * 0.2)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(student).save_pretrained(out)
    return out


def preference(rng: random.Random) -> dict:
    """A row as Tülu 3's preference data has them: the prompt, and both conversations whole."""

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    prompt = text(rng.randint(4, 16))
    asked = {"role": "user", "content": prompt}
    sides = {
        side: [asked, {"role": "assistant", "content": text(rng.randint(3, 9))}]
        for side in ("chosen", "rejected")
    }
    return {"id": str(rng.random()), "source": "made up", "prompt": prompt, **sides}


def verdict(question: str, attempt: int) -> Reply:
    """Half of all answers win, by log-probabilities of the evaluator's tokens; slowly enough."""
    wins = sum(question.encode()) % 2
    top = [{"token": token, "logprob": -0.1 - 2 * (at == wins)} for at, token in enumerate("mM")]
    said = answer_to(
        question, message={"content": "m"}, logprobs={"content": [{"top_logprobs": top}]}
    )
    return Reply(200, said, delay=0.1)


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has vLLM."""
    found = Path(os.environ.get("DELTALEARN_VLLM_PYTHON") or MADE)
    if not found.exists():
        reason = f"no Python with vLLM at {found}; `make .venv-vllm/.installed` makes one"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return str(found)


@dataclass(frozen=True)
class Whole:
    """The run that nobody disturbed, through vLLM; what was foretold before, and the judge."""

    out: Path
    foretold: str
    asked: Counter[str]
    after: str


@pytest.fixture(scope="module")
def whole(small, python) -> Whole:
    out = small.folder / "whole"
    vllm = f"generate.vllm={json.dumps({'python': python, 'options': VLLM})}"
    with FaultServer(verdict) as judge:
        before = small.run(judge, out, vllm, options=("--dry-run",))
        assert before.returncode == 0, before.stderr
        assert not out.exists(), "a dry run writes nothing"
        done = small.run(judge, out, vllm)
        assert done.returncode == 0, done.stdout + done.stderr
        after = small.run(judge, out, vllm, options=("--dry-run",))
        return Whole(out, before.stdout, judge.asked, after.stdout)


# -- what is on disk of a run ---------------------------------------------------------------------


def stages(out: Path) -> dict[str, dict]:
    file = out / "run.json"
    return json.loads(file.read_text())["stages"] if file.is_file() else {}


def keys(file: Path, table: str = "entries") -> set[str]:
    """Of all that a store holds; nothing of one that is just being made."""
    if not file.is_file():
        return set()
    try:
        db = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            return {key for (key,) in db.execute(f"SELECT key FROM {table}")}  # noqa: S608
        finally:
            db.close()
    except sqlite3.OperationalError:
        return set()


def answers(out: Path) -> set[str]:
    return keys(out / "responses.sqlite", "responses")


def outputs(out: Path) -> set[str]:
    """Of all evaluated models; the same question to two of them is two."""
    found = out.glob("scores/**/model_outputs.sqlite")
    return {f"{file.parent.relative_to(out)} {key}" for file in found for key in keys(file)}


def verdicts(out: Path) -> set[str]:
    found = out.glob("scores/**/judge_verdicts.sqlite")
    return {f"{file.parent.relative_to(out)} {key}" for file in found for key in keys(file)}


def steps(out: Path) -> set[str]:
    """Of training, as far as they are safe."""
    found = set()
    for arm in TUNED:
        folder = out / "arms" / arm / "seed-42"
        record = stages(out).get(f"tune/{arm}/seed-42", {})
        last = record.get("counts", {}).get("steps", 0)
        for checkpoint in folder.glob("checkpoints/step-*"):
            last = max(last, int(checkpoint.name.removeprefix("step-")))
        found |= {f"{arm} {step}" for step in range(1, last + 1)}
    return found


PROGRESS: dict[str, Callable[[Path], set[str]]] = {
    "answers": answers, "steps": steps, "outputs": outputs, "verdicts": verdicts
}  # fmt: skip


# -- the run as a whole ---------------------------------------------------------------------------


def test_all_arms_come_out_with_the_joint_average(whole):
    summary = json.loads((whole.out / "summary.json").read_text())
    assert tuple(summary["arms"]) == ARMS
    assert summary["benchmarks"]["average"]["title"] == AVERAGE
    eleven = summary["benchmarks"]["average"]["of"]
    assert len(eleven) == 11
    for name, entry in (summary["arms"] | summary["teachers"]).items():
        parts = [entry[benchmark]["mean"] for benchmark in eleven]
        assert entry["average"]["mean"] == pytest.approx(sum(parts) / 11), name
    assert set(summary["teachers"]) == set(ASKED)
    base = summary["arms"]["base"]["average"]["mean"]
    for name in TUNED:
        own = summary["arms"][name]
        difference = own["diff_vs_base"]["average"]["mean"]
        assert difference == pytest.approx(own["average"]["mean"] - base)
    tuned = {name: summary["arms"][name]["average"]["mean"] for name in TUNED}
    assert len(set(tuned.values())) > 1, "so that another student would be noticed below"


def test_the_strong_supervision_is_compared(whole, tmp_path):
    file = tmp_path / "found.json"
    done = deltalearn(
        "compare", f"{whole.out}:delta", f"{whole.out}:tulu3_preference",
        "--draws", "300", "--json", file,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert [found[side]["name"] for side in "ab"] == ["tulu3-8b/delta", "tulu3-8b/tulu3_preference"]
    assert len(found["benchmarks"]) == 11
    average = found["averages"][0]
    assert average["label"] == AVERAGE and AVERAGE in done.stdout
    arms = json.loads((whole.out / "summary.json").read_text())["arms"]
    means = [arms[name]["average"]["mean"] for name in ("delta", "tulu3_preference")]
    assert average["difference"] == pytest.approx(means[0] - means[1])


def test_vllm_answered(whole):
    db = sqlite3.connect(whole.out / "responses.sqlite")
    engines = {name for (name,) in db.execute("SELECT DISTINCT engine FROM responses")}
    db.close()
    assert len(answers(whole.out)) == 2 * ROWS
    assert all(re.match(r"vllm \d", name) for name in engines), engines


def section(text: str, name: str) -> str:
    """The block of one stage of a dry run."""
    (found,) = [block for block in text.split("\n\n") if block.startswith(name)]
    return found


def test_a_dry_run_foretells_it(whole):
    assert section(whole.foretold, "missing here").split() == ["missing", "here", "nothing"]
    counts = {name: record["counts"] for name, record in stages(whole.out).items()}
    for name in ASKED:
        number = counts[f"generate/{name}"]["requests"]
        assert f"{name}: {number} requests, 0 answered already, {number} to ask" in whole.foretold
        assert f"{name}: {number} requests, {number} answered already, 0 to ask" in whole.after
    for arm in TUNED:
        made = counts[f"tune/{arm}/seed-42"]
        told = rf"^ +{arm} +\w+ +{made['examples']} +{made['steps']} "
        assert re.search(told, whole.foretold, re.M)
        assert re.search(rf"^ +{arm} .* 1 of 1 seeds done$", whole.after, re.M)
    scored = [counts[name] for name in counts if name.startswith("evaluate/")]
    assert f"evaluate   {len(scored)} models" in whole.foretold
    assert len(scored) == 7
    evaluated = section(whole.foretold, "evaluate")
    for benchmark in scored[0]:
        assert re.search(rf"^ +{benchmark} +{LIMIT} ", evaluated, re.M)
    assert f"and {LIMIT} verdicts of the judge" in evaluated
    assert whole.asked.total() == LIMIT * len(scored)


# -- killed and run again -------------------------------------------------------------------------


def main(out: Path, notes: Path, changes: list[str]) -> None:
    """Child process: fork off the run as often as a line comes in, after the imports.

    So a kill falls into the work and not into seconds of importing. Says the id of each process,
    then its exit status. The keys of all that a model is asked go to a file, for each start one.
    """
    from deltalearn.evaluate.harness.model import CachedLM
    from deltalearn.generate.engines.hf import TransformersEngine
    from deltalearn.pipeline.run import run_recipe
    from deltalearn.pipeline.run_options import RunOptions
    from deltalearn.recipe import load_recipe

    for heavy in ("deltalearn.tune", "lm_eval.evaluator", "lm_eval.tasks", HFLM):
        import_module(heavy)
    loaded = load_recipe(RECIPE, changes)
    answer, ask = TransformersEngine.answer, CachedLM._ask

    def run(start: str) -> None:
        with (notes / f"asked-{start}.txt").open("a") as asked:

            def answering(self, batch):
                asked.write("".join(request.key + "\n" for request in batch))
                asked.flush()
                return answer(self, batch)

            def asking(self, kind, part, bar):
                place = self.answers.path.parent.relative_to(out)
                asked.write("".join(f"{place} {key}\n" for key in part))
                asked.flush()
                return ask(self, kind, part, bar)

            TransformersEngine.answer, CachedLM._ask = answering, asking
            run_recipe(loaded, RunOptions(out=out), say=lambda line: None)

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            run(line.strip())
            os._exit(0)
        with suppress(OSError):  # it has done so itself
            os.setpgid(pid, pid)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


@dataclass
class Start:
    """One start of the run: what was stored before it and after, and what it asked."""

    before: dict[str, set[str]]
    after: dict[str, set[str]]
    asked: list[str]
    judged: int  # requests at the judge
    stage: str = ""  # that was running at the kill


class Runs:
    """Starts the run and kills it at a moment."""

    def __init__(self, small: Small, judge: FaultServer, out: Path, notes: Path) -> None:
        generate = {"engine": "transformers", "max_tokens": 24, "token_budget": TOKEN_BUDGET}
        changes = small.of(judge, f"generate={json.dumps(generate)}")
        self.judge, self.out, self.notes = judge, out, notes
        self.starts: list[Start] = []
        command = [sys.executable, __file__, str(out), str(notes), json.dumps(changes)]
        self._log = (notes / "log.txt").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            bufsize=1, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def start(self, moment: Callable[[], bool] | None = None) -> None:
        """Start it; kill it, and all of its group, once `moment` is there, or let it end."""
        number, judged, before = len(self.starts), self.judge.asked.total(), self._stored()
        self._process.stdin.write(f"{number}\n")
        pid = int(self._process.stdout.readline())
        while moment is not None and not moment():
            ended, _, _ = select.select([self._process.stdout], [], [], 0.02)
            assert not ended, f"it ended before its moment: {self._said()}"
        if moment is not None:
            os.killpg(pid, signal.SIGKILL)
        status = int(self._process.stdout.readline())
        assert os.WIFSIGNALED(status) if moment else status == 0, self._said()
        file = self.notes / f"asked-{number}.txt"
        asked = file.read_text().splitlines() if file.is_file() else []
        running = next((n for n, r in stages(self.out).items() if r["state"] != "done"), "")
        judged = self.judge.asked.total() - judged
        self.starts.append(Start(before, self._stored(), asked, judged, running))

    def _stored(self) -> dict[str, set[str]]:
        return {name: found(self.out) for name, found in PROGRESS.items()}

    def _said(self) -> str:
        return (self.notes / "log.txt").read_text()[-3000:]


@pytest.fixture(scope="module")
def killed(small, whole) -> Iterator[tuple[Runs, Counter[str]]]:
    """The same run with answers of transformers, killed at all moments, then let end."""
    notes, out = small.folder / "notes", small.folder / "killed"
    notes.mkdir()
    rng = random.Random(2026)
    wanted: dict[str, list[int]] = {}
    for kind, count in Counter(MOMENTS).items():
        there_will_be = range(1, len(PROGRESS[kind](whole.out)))
        wanted[kind] = sorted(rng.sample(there_will_be, count), reverse=True)
    with FaultServer(verdict) as judge, Runs(small, judge, out, notes) as runs:
        for kind in MOMENTS:
            number, found = wanted[kind].pop(), PROGRESS[kind]
            late = rng.uniform(0, 0.03)

            def moment(number=number, found=found, late=late) -> bool:
                if len(found(out)) < number:
                    return False
                time.sleep(late)
                return True

            runs.start(moment)
        runs.start()
        yield runs, judge.asked


def test_ten_kills_change_nothing(whole, killed):
    runs, _ = killed
    assert len(runs.starts) == 11
    stages_killed = Counter(start.stage.split("/")[0] for start in runs.starts[:-1])
    assert {"generate", "tune", "evaluate"} <= stages_killed.keys(), stages_killed
    for name in ("qwen3b_over_qwen1.5b", "qwen1.5b_over_qwen3b"):
        ours, theirs = (
            pq.read_table(o / "pairs" / f"{name}.parquet") for o in (runs.out, whole.out)
        )
        assert ours.equals(theirs)
    scored = sorted(p.relative_to(whole.out) for p in whole.out.glob("scores/**/*.parquet"))
    assert len(scored) == 7 * 11
    for items in scored:
        assert pq.read_table(whole.out / items).equals(pq.read_table(runs.out / items)), items
    summaries = [json.loads((o / "summary.json").read_text()) for o in (runs.out, whole.out)]
    assert summaries[0] == summaries[1]


def test_nothing_is_asked_twice_but_what_was_in_flight(whole, killed):
    runs, judged = killed
    batch = TOKEN_BUDGET // 24
    lost: Counter[str] = Counter()
    for start in runs.starts:
        assert len(start.asked) == len(set(start.asked))
        stored = start.before["answers"] | start.before["outputs"]
        assert not stored & set(start.asked), "what was stored was asked again"
        gone = set(start.asked) - start.after["answers"] - start.after["outputs"]
        assert len(gone) <= max(batch, GROUP)
        kept = len(start.after["verdicts"]) - len(start.before["verdicts"])
        assert kept <= start.judged <= kept + 1, "one verdict at a time is in flight"
        lost += Counter({"answers and outputs": len(gone), "verdicts": start.judged - kept})
        for name in ("answers", "outputs", "verdicts"):
            assert start.before[name] <= start.after[name], "nothing that was done is gone"
    assert runs.starts[-1].judged == kept and not gone, "nothing is lost without a kill"
    assert judged.keys() == whole.asked.keys()
    assert sum((judged - whole.asked).values()) == lost["verdicts"]
    print(f"lost in flight and asked again: {dict(lost)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
