"""Protects the rule that information is never fatal, and that nothing else is taken for it."""

from __future__ import annotations

import errno

import pytest

from deltalearn.errors import UserError
from deltalearn.util.failure import brief, informed


def fails(error: Exception):
    def find() -> int:
        raise error

    return find


def test_what_is_found_is_given_and_nothing_said():
    said: list[str] = []
    assert informed("memory", lambda: 3, said.append) == 3
    assert said == []


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), KeyError("x"), AssertionError()])
def test_what_fails_is_said_in_one_line(error):
    said: list[str] = []
    assert informed("memory estimate", fails(error), said.append) is None
    (line,) = said
    assert line.startswith(f"memory estimate: not known ({type(error).__name__}")
    assert "\n" not in line and "goes on" in line


@pytest.mark.parametrize("error", [UserError("mend it"), OSError(errno.ENOSPC, "full")])
def test_what_decides_the_work_is_no_information(error):
    with pytest.raises(type(error)):
        informed("memory estimate", fails(error), print)


def test_a_long_error_is_cut():
    assert len(brief(ValueError("x" * 999), most=50)) == len("ValueError: ") + 50
