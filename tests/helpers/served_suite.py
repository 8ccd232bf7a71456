"""A small suite at a stand-in server, for tests of `deltalearn evaluate`: seconds, no weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltalearn.evaluate.harness.backends import BackendOptions
from deltalearn.pipeline.evaluate import evaluate
from deltalearn.pipeline.evaluate_options import Options
from deltalearn.recipe.evaluation import EvaluateSpec, JudgeSpec
from helpers.fault_server import FaultServer, Reply, answer_to

TEMPLATE = '''<|im_start|>user
{instruction}
m: """{output_1}"""
M: """{output_2}"""
<|im_end|>'''
CONFIG = """\
own:
  prompt_template: "own/prompt.txt"
  fn_completions: "openai_completions"
  completions_kwargs: {model_name: "judge-1", max_tokens: 1}
  fn_completion_parser: "logprob_parser"
  completion_parser_kwargs: {numerator_token: "m", denominator_tokens: ["m", "M"]}
"""


def data(folder: Path, items: int = 12) -> Path:
    """IFEval and AlpacaEval with `items` items each."""
    prompts = [
        {
            "key": i,
            "prompt": f"ifeval {i}",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for i in range(items)
    ]
    path = folder / "ifeval" / "input.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    references = [
        {
            "instruction": f"alpaca {i}",
            "output": "the reference" + " says more" * i,
            "generator": "reference",
            "dataset": "koala",
        }
        for i in range(items)
    ]
    path = folder / "alpaca_eval" / "reference_outputs.json"
    path.parent.mkdir()
    path.write_text(json.dumps(references))
    return folder


def evaluator(folder: Path) -> Path:
    """An evaluator of one's own; its replies are read as text with `text_only`."""
    place = folder / "own"
    place.mkdir(parents=True, exist_ok=True)
    (place / "prompt.txt").write_text(TEMPLATE)
    (place / "configs.yaml").write_text(CONFIG)
    return place / "configs.yaml"


def verdicts(question: str, attempt: int) -> Reply:
    """A judge that tells answers apart by what they are asked about."""
    return Reply(200, answer_to(question, message={"content": "mM"[len(question) % 2]}))


class Suite:
    """`run(...)` -> (results.json, what was said); results in `out`, beside the log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = data(folder / "data")
        self.out = folder / "evals" / "m"

    def run(
        self, server: FaultServer | None, *benchmarks: str, **changes: Any
    ) -> tuple[dict[str, Any], str]:
        """One evaluation; changes: of Options, or of its section of a recipe."""
        said: list[str] = []
        url = server.url if server else "http://127.0.0.1:9/v1"
        options = {
            "backend": BackendOptions(
                kind="openai", model="m", url=url, concurrency=4, options={"max_retries": 1}
            ),
            "out": self.out,
            "name": "m",
            "say": said.append,
        }
        section = {
            "benchmarks": benchmarks or ("alpaca_eval", "ifeval"),
            "data_dir": str(self.data),
        }
        for key, value in changes.items():
            (section if key in EvaluateSpec.model_fields.keys() - options else options)[key] = value
        try:
            return evaluate(Options(spec=EvaluateSpec(**section), **options)), "\n".join(said)
        finally:
            self.said = "\n".join(said)

    def judge(self, server: FaultServer | None, **changes: Any) -> JudgeSpec:
        """The evaluator of one's own at `server`."""
        url = server.url if server else "http://127.0.0.1:9/v1"
        given = {"url": url, "text_only": True, "concurrency": 4, **changes}
        return JudgeSpec(evaluator=str(evaluator(self.folder)), **given)

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.out / "results.json").read_text())

    @property
    def test_set_log(self) -> list[dict[str, Any]]:
        path = self.out.parent / "evaluations.jsonl"
        return [json.loads(x) for x in path.read_text().splitlines()] if path.is_file() else []


def when(part: str, planned: Any) -> Callable[[str, int], Any]:
    """A plan: questions with `part` in them meet `planned`, the others are answered."""
    return lambda question, attempt: (
        planned if part in question else Reply(200, answer_to(question))
    )
