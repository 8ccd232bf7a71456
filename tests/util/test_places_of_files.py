"""Protects folders that take another's place: complete, and readable by whom the folder is."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from deltalearn.util.files import replacing_directory


@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_weights_may_be_read_by_whoever_may_read_the_folder(tmp_path, umask, wanted):
    """safetensors gives them to their owner alone, whatever the umask says."""
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("")
    elsewhere.chmod(0o400)
    before = os.umask(umask)
    try:
        with replacing_directory(tmp_path / "final") as folder:
            save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
            (folder / "link").symlink_to(elsewhere)
    finally:
        os.umask(before)
    mode = (tmp_path / "final" / "model.safetensors").stat().st_mode
    assert stat.S_IMODE(mode) == wanted
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o400, "what is linked to is another's"
