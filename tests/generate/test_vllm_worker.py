"""Protects what the worker asks of vLLM, with a vLLM that only notes it; see `test_vllm.py`.

On a CPU vLLM ends at a request with a seed whose prompt it reads in parts.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from deltalearn.generate.engines import vllm_worker


@pytest.fixture
def noted(monkeypatch):
    """`noted(cpu=...)`: a vLLM on a CPU or not; the options that it is given."""

    def make(cpu: bool) -> dict:
        given: dict = {}

        def engine(**options):
            given.update(options)
            parts = options.get("enable_chunked_prefill", True)
            scheduler = SimpleNamespace(enable_chunked_prefill=parts)
            config = SimpleNamespace(scheduler_config=scheduler)
            return SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))

        vllm, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
        vllm.LLM, vllm.__version__ = engine, "1.2.3"
        platforms.current_platform = SimpleNamespace(is_cpu=lambda: cpu)
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
        return given

    return make


@pytest.mark.parametrize(
    ("cpu", "options", "whole", "seeds"),
    [
        (True, {}, True, True),
        (True, {"enable_chunked_prefill": True}, False, False),
        (True, {"max_num_batched_tokens": 64}, False, False),
        (True, {"max_num_batched_tokens": 64, "enable_chunked_prefill": False}, True, True),
        (False, {}, False, True),
        (False, {"max_num_batched_tokens": 64}, False, True),
    ],
)
def test_prompts_are_read_whole_where_seeds_need_it(noted, cpu, options, whole, seeds):
    given = noted(cpu=cpu)
    engine, _ = vllm_worker.load({"model": "m", "engine": options})
    assert (given.get("enable_chunked_prefill") is False) == whole
    assert vllm_worker.takes_seeds(engine) == seeds
    assert given["generation_config"] == "vllm" and given["model"] == "m"
    assert {name: given[name] for name in options} == options
