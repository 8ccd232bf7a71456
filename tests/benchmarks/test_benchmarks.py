"""Protects the benchmarks: that they run, keep their promised last line, and fail on other work.

Sizes are tiny and no timing is asserted; what is asserted is that both sides did the same steps,
how often each scored an answer, and the count of useful operations, worked out by hand.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("trl")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def last_line(script: str, *options: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / script), *options]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture
def load(monkeypatch):
    """`load("common")` imports a module of the benchmarks, which are scripts and no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.slow
def test_tune_vs_trl_does_the_same_steps_on_both_sides():
    found = last_line("tune_vs_trl.py", "--quick", "--mix", "ultrafeedback")
    assert found["steps_agree"]
    assert found["mixes"]["ultrafeedback"]["ratio"] == found["ratio"] > 0
    assert 0 < found["gemm_share"] < 1
    for key in ("tokens_per_s", "pairs_per_s", "peak_memory_mb", "reference_s"):
        assert set(found[key]) == {"ours", "trl"}, key
        assert min(found[key].values()) > 0, key
    for losses in found["losses"].values():
        assert len(losses) == 3
        assert abs(losses[-1] - losses[0]) > 1e-3, "agreeing on ln 2 alone would prove nothing"


@pytest.mark.slow
def test_every_stage_of_a_gpu_day_runs_on_a_cpu(tmp_path):
    """Each way of a step is that of padded float32 rows, and TRL's; a resumed run is the same."""
    summary = last_line("gpu.py", "--tiny", "--seconds", "1500", "--out", str(tmp_path))
    assert set(summary["stages"].values()) == {"done"}, (tmp_path / "logs.txt").read_text()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == set(summary["stages"])
    ways = {(line["dtype"], line["way"]): line for line in lines if "way" in line}
    assert len(ways) == 18
    for (dtype, way), line in ways.items():
        assert "error" not in line, line
        rough = dtype == "bfloat16" or way == "shared-qlora"
        assert line["loss_apart"] < (3e-2 if rough else 1e-5), line
    (resume,) = [line["resume"] for line in lines if "resume" in line]
    assert 0 < resume["stopped_after"] < resume["steps"]
    assert resume["largest_difference"] == 0
    levers = {line["lever"]: line for line in lines if "lever" in line}
    assert len(levers) == 5 and all(line["loss_apart"] < 1e-5 for line in levers.values())
    for line in levers.values():
        assert line["memory_estimated_mb"] > 0 < line["memory_peak_mb"]
        assert line["seconds_estimated"] > 0 < line["seconds_measured"]
    assert len([line for line in lines if "rival" in line and "losses" in line]) == 1
    traces = [line for line in lines if "kinds" in line]
    assert len(traces) == 2
    for line in traces:
        assert line["kinds"]["products"] > 0 < line["parts"]["head"]
    ratios = {line["mode"]: line for line in lines if "ratio" in line}
    assert set(ratios) == {"lora", "full"}
    assert all(line["steps_agree"] and line["ratio"] > 0 for line in ratios.values())


def test_a_stage_that_takes_too_long_is_cut_and_the_others_go_on(load, tmp_path, monkeypatch):
    gpu, stages = load("gpu"), load("gpu_stages")
    endless = stages.Stage(stages.correctness, 1, 1)
    monkeypatch.setitem(stages.STAGES, "correctness", endless)
    options = SimpleNamespace(out=tmp_path, shape="1b", tiny=True)
    assert gpu.run_stage("correctness", 1, tmp_path, options) == "cut after 1 s"
    assert "correctness: cut after 1 s" in (tmp_path / "logs.txt").read_text()


def test_errors_among_findings_are_counted(load, tmp_path, monkeypatch):
    """A stage that goes on after an error must not look like one without."""
    gpu, lines = load("gpu"), tmp_path / "results.jsonl"
    said = [{"lever": "a"}, {"lever": "b", "error": "no room"}, {"lever": "c", "error": "x"}]
    code = f"open({str(lines)!r}, 'a').write({''.join(json.dumps(x) + chr(10) for x in said)!r})"
    plain = subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda _, **told: plain([sys.executable, "-c", code], **told)
    )
    options = SimpleNamespace(out=tmp_path, shape="1b", tiny=True)
    assert gpu.run_stage("levers", 60, tmp_path, options) == "done, with 2 errors"


@pytest.mark.slow
def test_an_error_is_a_finding_and_the_next_goes_on(load, tmp_path):
    """Memory that runs out, a side that ends, a broken kernel: each is a line."""
    import torch

    job = load("gpu_job").Job("x", str(tmp_path / "lines"), str(tmp_path), "1b", True, 0.0)
    errors = (torch.OutOfMemoryError("no room"), SystemExit("ours ended"), RuntimeError("y" * 2000))
    for error in errors:
        with job.told(lever="a"):
            raise error
    with pytest.raises(KeyboardInterrupt), job.told(lever="a"):
        raise KeyboardInterrupt
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["lever"] for line in lines] == ["a"] * 3
    assert lines[0]["error"] == "OutOfMemoryError: no room"
    assert lines[1]["error"] == "SystemExit: ours ended"
    assert len(lines[2]["error"]) == 800


def test_a_wheel_is_trimmed_to_the_libraries_that_are_used(load, tmp_path):
    wheel = tmp_path / "x-1.0-py3-none-any.whl"
    names = ["x/__init__.py", "x/libx_cuda130.so", "x/libx_cuda118.so"]
    record = "".join(f"{name},sha256=0,1\n" for name in names)
    with zipfile.ZipFile(wheel, "w") as made:
        for name in names:
            made.writestr(name, name)
        made.writestr("x-1.0.dist-info/RECORD", record)
    load("gpu_pack").trim(wheel, ("libx_cuda130.so",))
    with zipfile.ZipFile(wheel) as found:
        assert found.namelist() == [*names[:2], "x-1.0.dist-info/RECORD"]
        assert found.read("x/libx_cuda130.so").decode() == names[1]
        assert "cuda118" not in found.read("x-1.0.dist-info/RECORD").decode()
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_where_the_time_of_a_trace_goes(load):
    """Kinds by name, parts by the marks around them, and what no kernel fills."""
    module = load("gpu_profile")

    def event(kind, name, start, end, thread=0):
        return module.Event(kind, name, start, end, thread)

    found = module.where_time_goes([
        event("gpu_user_annotation", "part: head", 40, 60),
        event("gpu_user_annotation", "Optimizer.step#AdamW.step", 90, 101),
        event("user_annotation", "part: head", 0, 5),
        event("cpu_op", "aten::mm", 0, 9),
        event("kernel", "nvjet_tst_128x256_64x4", 0, 30),
        event("kernel", "triton_tem_fused_flex_attention_0", 30, 40),
        event("kernel", "sm90_xmma_gemm_bf16", 45, 55),
        event("kernel", "multi_tensor_apply_kernel", 90, 100),
        event("gpu_memcpy", "Memcpy HtoD", 50, 52, thread=1),
    ])  # fmt: skip
    assert found["milliseconds"] == 0.1
    assert found["idle"] == 0.4
    assert found["kinds"] == {"products": 0.4, "attention": 0.1, "others": 0.1, "copies": 0.02}
    assert found["parts"] == {"head": 0.12, "optimizer": 0.1}
    assert found["kernels"][0] == {"name": "nvjet_tst_128x256_64x4", "share": 0.3, "calls": 1}
    on_cpu = module.where_time_goes([
        event("cpu_op", "aten::linear", 0, 10),
        event("cpu_op", "aten::mm", 2, 10),
        event("cpu_op", "aten::mul", 5, 20, thread=1),
    ])  # fmt: skip
    assert on_cpu["kinds"] == {"others": 0.85, "products": 0.4}, "each with its own time"
    assert on_cpu["idle"] == 0
    assert "no kernels" in module.where_time_goes([])["error"]


@pytest.mark.slow
def test_tune_vs_trl_gpu_says_what_is_missing():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU, so nothing is missing")
    command = [sys.executable, str(BENCHMARKS / "tune_vs_trl_gpu.py")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "needs a CUDA GPU" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_reference_cache_scores_each_answer_once():
    """Three models make 3 pairings: 3 answers a prompt against 2 x 3; a new lr costs TRL 2 more."""
    found = last_line("reference_cache.py", "--quick")
    ours, trl = (found["scorings_per_prompt"][side] for side in ("ours", "trl"))
    assert ours == {"one_pairing": 2, "all_pairings": 3, "again": 0, "other_lr": 0}
    assert trl == {"one_pairing": 2, "all_pairings": 6, "again": 0, "other_lr": 2}
    assert found["one_tree"]["scorings_per_prompt"] == 3
    assert found["largest_difference"] < 1e-4


def test_steps_that_differ_end_in_an_error(load):
    contest = load("contest")
    tolerance = {"losses": 1e-4, "grad_norms": 1e-3}
    one = {"losses": [0.6931, 0.6], "grad_norms": [2.0, 3.0]}
    near = {"losses": [0.6931, 0.60003], "grad_norms": [2.001, 3.0]}
    far = {"losses": [0.6931, 0.60009], "grad_norms": [2.0, 3.0]}
    assert contest.agreement(one, near, tolerance)["steps_agree"]
    assert not contest.agreement(one, far, tolerance)["steps_agree"]
    nowhere = {"losses": [0.6931, float("nan")], "grad_norms": [2.0, 3.0]}
    assert not contest.agreement(nowhere, one, tolerance)["steps_agree"]
    contest.exit_unless_agreed({"mix": {"steps_agree": True}})
    with pytest.raises(SystemExit, match="mix: losses"):
        contest.exit_unless_agreed({"mix": {"steps_agree": False}})


def test_useful_flops_by_hand(load):
    """Two layers of width 4 (2 heads of 2, 1 key head, MLP of 8), 10 words; 1 + 2 and 3 words.

    Elements of a layer: 4x4 query, 4x4 output, 2 of 4x2 key and value, 3 of 4x8: 144. A prompt of
    1 word and 2 headers is 3 tokens, the answers with their ends 3 and 4: 10 tokens in the body,
    7 in the head. Keys seen: 6 in the prompt, 3x3 + 6 and 4x3 + 10 by the answers: 43.
    6 x 2 x 144 x 10 + 6 x 4 x 10 x 7 + 12 x 2 x 2 x 2 x 43 = 17280 + 1680 + 4128.
    """
    common = load("common")
    config = SimpleNamespace(
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=10,
    )
    assert common.useful_flops(config, [(1, 2, 3)]) == 23088
    frozen = 4 * 2 * 144 * 10 + 4 * 4 * 10 * 7 + 4128
    assert common.useful_flops(config, [(1, 2, 3)], weight_gradients=False) == frozen
    assert common.tokens_of([(1, 2, 3), (1, 2, 3)]) == 20


def test_lengths_keep_their_medians_and_fit(load):
    common = load("common")
    lengths = common.draw_lengths(common.MIXES["ultrafeedback"], 2001, 2048, seed=0)
    medians = [sorted(side)[1000] for side in zip(*lengths, strict=True)]
    for median, expected in zip(medians, (150, 350, 300), strict=True):
        assert abs(median - expected) < 0.1 * expected
    assert max(p + 2 + max(c, r) + 1 for p, c, r in lengths) == 2048


@pytest.mark.slow
def test_preparation_gives_the_ids_of_trl():
    found = last_line("prepare.py", "--pairs", "300", "--peer-pairs", "50")
    assert found["ids_agree"]
    assert found["ratio"] > 0


@pytest.mark.slow
def test_clients_bring_back_every_request_once():
    """The openai client is here by the judge's extra; Curator is asked only where it is given."""
    found = last_line(
        "http_client.py", "--requests", "400", "--peer-requests", "100", "--long", "1000",
        "--latency", "1",
    )  # fmt: skip
    assert {"ours", "raw", "stub"} <= found["requests_per_s"].keys()
    assert all(rate > 0 for rate in found["requests_per_s"].values())
    assert list(found["long"]["rss_mb"]) == [
        str(n) for n in sorted(map(int, found["long"]["rss_mb"]))
    ]


@pytest.mark.slow
def test_the_store_is_read_while_it_is_written():
    found = last_line("response_store.py", "--rows", "8000")
    assert {"write", "read", "pairs", "check", "export"} <= found["rows_per_s"].keys()
    readers = found["reader"].values()
    assert all(reader["wrong"] == 0 for reader in readers)
    assert sum(reader["reads"] for reader in readers) > 0


@pytest.mark.slow
def test_vllm_gives_both_sides_the_same_ids():
    made = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
    python = Path(os.environ.get("DELTALEARN_VLLM_PYTHON") or made)
    if not python.exists():
        pytest.skip(f"no Python with vLLM at {python}; `make .venv-vllm/.installed` makes one")
    found = last_line(
        "generate_vllm.py", "--python", str(python), "--requests", "64", "--rounds", "1",
        "--hidden", "128", "--layers", "1", "--max-tokens", "8",
    )  # fmt: skip
    assert found["different_answers"] == 0
    assert found["distinct_answers"] > 32
    assert set(found["seconds"]) == {"ours", "raw"}
