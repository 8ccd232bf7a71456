"""Protects the sets of ids that tuning reads: views, identity, and the files that keep them."""

from __future__ import annotations

import numpy as np
import pytest

from deltalearn.errors import UserError
from deltalearn.tune import dataset as module
from deltalearn.tune.dataset import Collector, Example, Examples, read_about


def listed(example: Example) -> tuple[list[int], list[int], list[int]]:
    return example.prompt.tolist(), example.chosen.tolist(), example.rejected.tolist()


class TestExamples:
    pairs = (([1, 2, 3], [4, 5], [6]), ([7], [8], [9, 10, 11]), ([12, 13], [14], [15]))

    def test_views_and_lengths(self):
        examples = Examples.of(self.pairs)
        assert [listed(e) for e in examples] == list(self.pairs)
        assert examples.prompt_lengths.tolist() == [3, 1, 2]
        assert examples.chosen_lengths.tolist() == [2, 1, 1]
        assert examples.rejected_lengths.tolist() == [1, 3, 1]
        assert examples[0].chosen.dtype == examples.prompt_lengths.dtype == np.int32
        with pytest.raises(ValueError, match="read-only"):
            examples[0].chosen[0] = 1

    def test_select_is_a_view_in_the_given_order(self):
        examples = Examples.of(self.pairs)
        chosen = examples.select([2, 0])
        assert [listed(e) for e in chosen] == [self.pairs[2], self.pairs[0]]
        assert chosen.rejected_lengths.tolist() == [1, 1]
        assert np.shares_memory(chosen[0].prompt, examples[2].prompt)
        assert len(examples.select([])) == 0

    def test_digest_is_of_content_and_order_alone(self, tmp_path):
        examples = Examples.of(self.pairs)
        swapped = examples.select([0, 2, 1])
        same = [
            Examples.of(self.pairs),
            swapped.select([0, 2, 1]),
            examples.save(tmp_path / "a"),
            swapped.select([0, 2, 1]).save(tmp_path / "b"),
        ]
        assert {e.digest for e in same} == {examples.digest}
        moved = [([1, 2], [3, 4, 5], [6]), *self.pairs[1:]]  # the same tokens, split elsewhere
        other = Examples.of([([1, 2, 3], [4, 5], [7]), *self.pairs[1:]])
        found = {e.digest for e in (examples, swapped, Examples.of(moved), other)}
        assert len(found) == 4

    def test_folder_gives_the_same_mapped(self, tmp_path):
        examples = Examples.of(self.pairs).save(tmp_path / "set", {"note": 1})
        again = Examples.open(tmp_path / "set")
        assert [listed(e) for e in again] == [listed(e) for e in examples] == list(self.pairs)
        assert read_about(tmp_path / "set") == {"note": 1}
        assert isinstance(again._tokens.base, np.memmap)
        assert [p.name for p in tmp_path.iterdir()] == ["set"]

    def test_large_sets_keep_their_header(self, tmp_path):
        """The size of the array is written after its content, over a header of the same size."""
        pairs = [(range(50), range(900), range(50))] * 1001
        assert Examples.of(pairs).save(tmp_path / "a").digest == Examples.of(pairs).digest

    @pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "meta.json"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "short", "flipped"])
    def test_a_damaged_folder_is_a_user_error(self, tmp_path, name, damage):
        folder = tmp_path / "set"
        Examples.of(self.pairs).save(folder)
        file = folder / name
        content = bytearray(file.read_bytes())
        if damage == "missing":
            file.unlink()
        elif damage == "flipped":
            content[-4] ^= 1
            file.write_bytes(content)
        else:
            file.write_bytes(content[: 0 if damage == "empty" else len(content) - 7])
        with pytest.raises(UserError, match="no whole set of prepared examples"):
            Examples.open(folder)

    def test_no_pickle_is_ever_loaded(self, tmp_path):
        folder = tmp_path / "set"
        Examples.of(self.pairs).save(folder)
        np.save(folder / "offsets.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match="allow_pickle"):
            Examples.open(folder)

    def test_another_version_is_refused(self, tmp_path, monkeypatch):
        Examples.of(self.pairs).save(tmp_path / "set")
        monkeypatch.setattr(module, "VERSION", 99)
        with pytest.raises(UserError, match="version 1, this program reads 99"):
            Examples.open(tmp_path / "set")

    def test_a_failed_write_keeps_the_old_folder_and_leaves_no_other(self, tmp_path):
        Examples.of(self.pairs).save(tmp_path / "set")
        with pytest.raises(RuntimeError), Collector(tmp_path / "set") as collector:
            collector.add([np.array([1], dtype=np.int32)] * 3)
            raise RuntimeError("power cut")
        assert len(Examples.open(tmp_path / "set")) == 3
        assert [p.name for p in tmp_path.iterdir()] == ["set"]
