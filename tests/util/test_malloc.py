"""Protects the switch that keeps freed memory, without which every step clears its pages anew."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FAULTS_OF_TEN_LARGE_BLOCKS = """
import json, resource, sys
import numpy
from deltalearn.util.malloc import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
numpy.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    numpy.ones(8_000_000)  # 64 MB, 15,625 pages
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def test_freed_blocks_are_used_again():
    found = {}
    for mode in ("plain", "keep"):
        command = [sys.executable, "-c", FAULTS_OF_TEN_LARGE_BLOCKS, mode]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        found[mode] = json.loads(ended.stdout)
    kept, faults = found["keep"]
    if not kept:
        pytest.skip("the C library has no mallopt")
    assert faults < 1_000, f"{found['plain'][1]} without"
