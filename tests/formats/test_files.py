"""Protects the kinds of files: the same rows from each, and no row of a file is lost unsaid."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltalearn.errors import UserError
from deltalearn.formats.rows import rows

ROWS = [
    {"prompt": 'Größe, "q"\nnext line', "chosen": "a;b", "rejected": "🙂"},
    {"prompt": "two", "chosen": "x" * 200_000, "rejected": None},
]


def jsonl(values: list[dict]) -> bytes:
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values).encode()


def table(values: list[dict], separator: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(values[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(values)
    return file.getvalue().encode()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


FILES = {
    "lines.jsonl": jsonl(ROWS),
    "LINES.JSONL": jsonl(ROWS),
    "lines.ndjson": jsonl(ROWS),
    "blank lines.jsonl": b"\n" + jsonl(ROWS).replace(b"\n", b"\n\n"),
    "mark.jsonl": b"\xef\xbb\xbf" + jsonl(ROWS),
    "array.json": json.dumps(ROWS).encode(),
    "array of several lines.json": json.dumps(ROWS, indent=1).encode("utf-8-sig"),
    "array.jsonl": json.dumps(ROWS).encode(),
    "array of several lines.jsonl": json.dumps(ROWS, indent=1).encode(),
    "lines.json": jsonl(ROWS),
    "table.csv": table(ROWS),
    "table with mark.csv": b"\xef\xbb\xbf" + table(ROWS),
    "table.tsv": table(ROWS, "\t"),
    "lines.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "two parts.jsonl.gz": b"".join(gzip.compress(jsonl([row])) for row in ROWS),
    "lines.jsonl.bz2": bz2.compress(jsonl(ROWS)),
    "lines.jsonl.xz": lzma.compress(jsonl(ROWS)),
    "lines.jsonl.zst": zstd(jsonl(ROWS)),
    "two parts.jsonl.zst": b"".join(zstd(jsonl([row])) for row in ROWS),
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "table.csv.zst": zstd(table(ROWS)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_holds_the_same_rows(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    found = list(rows(str(tmp_path / name)))
    assert [row.value for row in found] == ROWS
    assert not any(row.problem for row in found)
    assert len({row.where for row in found}) == 2


BAD = {
    "torn.json": (json.dumps(ROWS)[:-9].encode(), "begins as a JSON array, and is not JSON"),
    "torn.jsonl": (json.dumps(ROWS, indent=1)[:-9].encode(), "begins as a JSON array"),
    "object.json": (json.dumps({"data": ROWS}, indent=1).encode(), "must hold an array of rows"),
    "torn.jsonl.gz": (gzip.compress(jsonl(ROWS))[:-9], "cannot be read"),
    "none.jsonl.gz": (jsonl(ROWS), "cannot be read"),
    "none.jsonl.xz": (jsonl(ROWS), "cannot be read"),
    "none.jsonl.zst": (jsonl(ROWS), "cannot be read"),
    "latin.csv": (table(ROWS).decode().replace("🙂", "").encode("latin-1"), "no UTF-8 CSV"),
    "torn.csv": (b'prompt,chosen\n"q,a\n', "no UTF-8 CSV after line"),
    "twice.csv": (b"prompt,prompt\nq,a\n", "two columns of one name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_says_so_in_one_line(name, tmp_path):
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        list(rows(str(tmp_path / name)))
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_rows_of_a_table_have_their_line_and_as_many_cells_as_the_header(tmp_path):
    (tmp_path / "t.csv").write_text('prompt,answer\n"a\nb",1\nshort\n\nc,,\nd,4\n')
    found = list(rows(str(tmp_path / "t.csv")))
    assert [(row.where.rpartition(":")[2], bool(row.problem)) for row in found] == [
        ("2", False), ("4", True), ("6", True), ("7", False)
    ]  # fmt: skip
    assert found[0].value == {"prompt": "a\nb", "answer": "1"}


def test_a_row_of_lines_that_is_a_list_is_no_array(tmp_path):
    """The file holds a row a line: one of them is wrong."""
    for first in (b'["a"]', json.dumps(ROWS).encode()):
        (tmp_path / "t.jsonl").write_bytes(first + b'\n{"prompt": "b"}\n')
        found = list(rows(str(tmp_path / "t.jsonl")))
        assert [row.problem for row in found] == ["an object is needed, not list", None]


def test_a_folder_is_of_rows_and_not_of_what_describes_them(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS[:1]))
    (tmp_path / "statistics.json").write_text('{"rows": 1}')
    pq.write_table(pa.Table.from_pylist(ROWS[1:]), tmp_path / "b.parquet")
    assert [row.value for row in rows(str(tmp_path))] == ROWS


def test_columns_to_leave_out_must_be_there(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(jsonl(ROWS))
    found = list(rows(str(tmp_path / "t.jsonl"), ignore=["chosen"]))
    assert [list(row.value) for row in found] == [["prompt", "rejected"]] * 2
    with pytest.raises(UserError, match="ignore_columns: no row has a column 'chosn'"):
        list(rows(str(tmp_path / "t.jsonl"), ignore=["chosn"]))
