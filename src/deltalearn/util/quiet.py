"""What libraries say to whoever programs with them, kept off the screen of whoever runs a command.

What matters of it is checked and said here in our own words: weights that are missing, contexts
that are too short, devices that are not there.
"""

from __future__ import annotations

import logging
import os
import warnings

FOR_PROGRAMMERS = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
LOGGERS = ("bitsandbytes",)  # of others than transformers, which reads its level when imported


def quiet_libraries() -> None:
    """Silence them, in this process and in those that it starts; what the environment says wins."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "PYTHONWARNINGS" in os.environ:
        return
    for category in FOR_PROGRAMMERS:
        warnings.simplefilter("ignore", category)
    os.environ["PYTHONWARNINGS"] = ",".join(f"ignore::{c.__name__}" for c in FOR_PROGRAMMERS)
