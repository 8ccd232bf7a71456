"""Protects the screen of a command from what libraries say to programmers, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAYS = """
import logging, os, subprocess, sys, warnings
from deltalearn.util.quiet import quiet_libraries
quiet_libraries()
child = "import warnings; warnings.warn('old', FutureWarning); warnings.warn('seen', UserWarning)"
{before}
warnings.warn("old", FutureWarning)
warnings.warn("older", DeprecationWarning)
logging.getLogger("bitsandbytes.cextension").warning("no kernel")
from transformers.utils import logging as of_transformers
of_transformers.get_logger("transformers.x").warning("Token indices sequence length is longer")
subprocess.run([sys.executable, "-c", child])
logging.getLogger("bitsandbytes").error("broken")
warnings.warn("about your data", UserWarning)
"""


def said(before: str = "", **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", SAYS.format(before=before)], capture_output=True, text=True, env=env
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    import os

    return {
        n: v for n, v in os.environ.items() if n not in ("PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY")
    }


def test_what_is_meant_for_programmers_is_not_shown(environment):
    text = said(**environment)
    for hidden in ("old", "older", "no kernel", "Token indices"):
        assert f"{hidden}" not in text.replace("child", "")
    for shown in ("about your data", "seen", "broken"):
        assert shown in text


def test_who_asks_for_it_gets_it(environment):
    text = said(**environment, PYTHONWARNINGS="default", TRANSFORMERS_VERBOSITY="warning")
    assert "old" in text and "Token indices" in text
