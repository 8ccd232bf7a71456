"""What the tests of the sandbox share: a sandbox, or why there is none; the data of HumanEval."""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from typing import Any

import pytest

from deltalearn.errors import UserError
from deltalearn.evaluate.sandbox import Limits, Outcome, Sandbox
from helpers.data import find


@cache
def sandbox(packages: tuple[str, ...] = ("numpy",), **limits: int) -> Sandbox:
    """A sandbox; skips the test where none can be made, fails it in CI."""
    try:
        return Sandbox(allow=True, packages=packages, limits=Limits(**limits))
    except UserError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


def run(program: str, **settings: Any) -> Outcome:
    """What becomes of one program."""
    return sandbox().run_programs([program], workers=1, **settings)[0]


def problems(name: str) -> list[dict[str, str]]:
    """The 164 problems of a file of HumanEval's form; skips the test where it is absent."""
    with gzip.open(find(name), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
