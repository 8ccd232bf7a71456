"""Protects what each of several processes of a run finds: a GPU, or a share of the cores."""

from __future__ import annotations

import pytest
import torch

from deltalearn.errors import UserError
from deltalearn.pipeline.evaluate_stage import takes_named_devices
from deltalearn.pipeline.side_by_side import devices
from deltalearn.recipe.evaluation import EvaluateSpec


@pytest.mark.slow
def test_each_has_a_gpu_and_a_single_one_has_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(2, "auto") == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert devices(1, "auto") == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert devices(2, "cuda") == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    with pytest.raises(UserError, match="there are 2"):
        devices(3, "cuda")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert devices(3, "cpu") == [{"OMP_NUM_THREADS": "6"}] * 3


@pytest.mark.parametrize(
    ("backend", "named"),
    [
        ({}, False),
        ({"kind": "vllm", "options": {"max_num_seqs": 8}}, False),
        ({"kind": "vllm", "options": {"tensor_parallel_size": 2}}, True),
        ({"options": {"parallelize": True}}, True),
        ({"device": "cuda"}, False),
        ({"device": "cuda:1"}, True),
    ],
)
def test_a_model_on_named_devices_must_find_them(backend, named):
    spec = EvaluateSpec(benchmarks=("ifeval",), backend=backend)
    assert takes_named_devices(spec) is named
