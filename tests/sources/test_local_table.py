"""Data files: formats, broken rows, columns, splits, draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.source import DataSource, DataSpec
from ioptim.errors import PlanError
from ioptim.plan import _rows_of
from ioptim.sources import data_source


def source(path: Path | str, base: Path = Path(), root: Path | None = None, **options: Any) -> DataSource:
    return data_source(DataSpec(source=str(path), **options), base, root)


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error(data: DataSource) -> str:
    with pytest.raises(PlanError) as caught:
        data.read()
    return str(caught.value)


def test_tsv_is_never_quoted(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.tsv", 'sentence\tlabel\n"a film\t1\nit \'s "fine" , really\t0\n\n')
    table = source(path).read()
    assert table.columns == {"sentence": ['"a film', 'it \'s "fine" , really'], "label": ["1", "0"]}
    assert table.rows == ("rows.tsv:2", "rows.tsv:3")
    assert table.origin == str(path)


def test_csv_is_quoted_and_rows_are_named_by_their_first_line(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.csv", '\ufeffsentence,label\n"two\nlines, one row",1\nplain,0\n')
    table = source(path).read()
    assert table.columns == {"sentence": ["two\nlines, one row", "plain"], "label": ["1", "0"]}
    assert table.rows == ("rows.csv:2", "rows.csv:4")


def test_the_same_bytes_read_in_another_way_are_another_identity(tmp_path: Path) -> None:
    tsv, csv = (source(file(tmp_path, name, 'text\n"good"\n')) for name in ("a.tsv", "a.csv"))
    assert tsv.read().columns != csv.read().columns
    assert tsv.identity() != csv.identity()
    assert _rows_of(tsv) == _rows_of(csv) is not None  # to calibrate on one and judge by the other is a leak
    assert source(file(tmp_path, "b.TSV", 'text\n"good"\n')).identity() == tsv.identity()


def test_jsonl(tmp_path: Path) -> None:
    table = source(file(tmp_path, "rows.jsonl", '{"sentence": "é", "label": 1}\n\n{"label": 0, "sentence": "b"}\n')).read()
    assert table.columns == {"sentence": ["é", "b"], "label": [1, 0]}
    assert table.rows == ("rows.jsonl:1", "rows.jsonl:3")


@pytest.mark.integration
def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"sentence": ["a", "b"], "label": [1, 0]}), path)
    data = source(path, columns={"text": "sentence"})
    assert data.check() == []
    assert not data.cheap
    table = data.read()
    assert table.columns == {"text": ["a", "b"], "label": [1, 0]}
    assert table.rows == ("rows.parquet:1", "rows.parquet:2")
    assert source(path, columns={"text": "txt"}).check() == [
        f"{path} has no column 'txt' (asked for as 'text' by `columns`); it has sentence, label"
    ]
    path.write_bytes(b"no parquet")
    assert error(source(path)).startswith(f"{path} is not a Parquet file: ")


def test_broken_rows_are_named(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.tsv", "sentence\tlabel\ngood\t1\nno label\nx\t1\t2\n")
    assert source(path).check() == []
    assert error(source(path)) == (
        f"{path}: 2 objections\n"
        "  broken row: line 3 has 1 fields, the header has 2 (sentence, label)\n"
        "  broken row: line 4 has 3 fields, the header has 2 (sentence, label)"
    )


def test_many_broken_rows_are_counted(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.csv", "a,b\n" + "1\n" * 9)
    text = error(source(path))
    assert "line 6 has 1 fields" in text
    assert "line 7" not in text
    assert text.endswith("and 4 more broken rows")


def test_a_quote_that_does_not_close(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.csv", 'a,b\n1,2\n3,"4\n')
    assert error(source(path)) == f"{path}: broken row: line 3: unexpected end of data"


def test_broken_json(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.jsonl", '{"a": 1}\n{"a": \n[1]\n{"b": 2}\n')
    assert error(source(path)) == (
        f"{path}: 3 objections\n"
        "  broken row: line 2 is not JSON: Expecting value (column 7)\n"
        "  broken row: line 3 holds list, not a JSON object\n"
        "  broken row: line 4 has the keys b; the first row has a"
    )
    file(tmp_path, "rows.jsonl", f'{{"a": {"9" * 5000}}}\n{{"a": {"[" * 100_000}\n')
    text = "holds a number of thousands of digits, or thousands of brackets in one another"
    assert error(source(path)) == f"{path}: 2 objections\n  broken row: line 1 {text}\n  broken row: line 2 {text}"


def test_empty(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.tsv", "")
    assert source(path).check() == [f"{path} is empty: expected a header with the names of the columns, then rows"]
    assert error(source(file(tmp_path, "head.tsv", "sentence\tlabel\n"))) == f"{tmp_path}/head.tsv has no rows"
    assert error(source(file(tmp_path, "blank.jsonl", "\n\n"))) == f"{tmp_path}/blank.jsonl is empty: expected one JSON object on each line"


def test_headers_that_are_none(tmp_path: Path) -> None:
    assert error(source(file(tmp_path, "a.csv", "x,y,x\n1,2,3\n"))) == f"{tmp_path}/a.csv: the header names x twice"
    assert error(source(file(tmp_path, "b.csv", "x,\n1,2\n"))) == f"{tmp_path}/b.csv: the header has a column without a name: 'x', ''"
    half = file(tmp_path, "c.csv", '"x"y,z\n1,2\n')
    message = (
        f"{half}: the header cannot be read (',' expected after '\"'): expected names with commas between them,"
        " each plain or wholly in quotation marks"
    )
    assert error(source(half)) == message
    assert source(half, columns={"a": "z"}).check() == [message]


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    assert error(source(path)) == f"{path} is not UTF-8 text (byte 18); convert it, for example: iconv -t UTF-8"


def test_columns_are_renamed_and_the_others_kept(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.csv", "text,label,stars,id\na,x,5,7\n")
    table = source(path, columns={"sentence": "text", "label": "stars"}).read()
    assert table.columns == {"sentence": ["a"], "label": ["5"], "id": ["7"]}


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.csv", "text,stars\na,5\n")
    message = f"{path} has no column 'review' (asked for as 'sentence' by `columns`); it has text, stars"
    data = source(path, columns={"sentence": "review", "label": "stars"})
    assert data.check() == [message]
    assert error(data) == message


def test_a_limit_draws_the_same_rows_each_time_in_their_order(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.csv", "n\n" + "".join(f"{i}\n" for i in range(100)))
    table = source(path, limit=10, seed=3).read()
    values = [int(n) for n in table.columns["n"]]
    assert len(values) == 10
    assert values == sorted(values)
    assert table.rows == tuple(f"rows.csv:{n + 2}" for n in values)
    assert table == source(path, limit=10, seed=3).read()
    assert table != source(path, limit=10, seed=4).read()
    assert table.origin == f"{path} (10 of 100 rows, seed 3)"
    assert source(path, limit=1000).read().origin == f"{path} (all 100 rows; limit 1000)"


def test_identity_follows_what_changes_the_rows(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.csv", "n,m\n1,2\n")
    same = [source(path).identity(), source(path, seed=7).identity()]
    assert same[0] == same[1]
    others = [source(path, limit=1), source(path, limit=1, seed=7), source(path, columns={"a": "n"}), source(path, columns={"a": "m"})]
    found = [*same[:1], *(other.identity() for other in others)]
    assert len({str(one) for one in found}) == 5


def test_a_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    file(tmp_path, "train.tsv", "a\n1\n")
    file(tmp_path, "test.tsv", "a\n2\n")
    file(tmp_path, "notes.md", "")
    assert source(tmp_path, split="test").read().columns == {"a": ["2"]}
    assert source(tmp_path).check() == [f"{tmp_path} is a folder: name the split. It has test.tsv, train.tsv"]
    assert source(tmp_path, split="dev").check() == [f"{tmp_path} has no file for the split 'dev'; it has test.tsv, train.tsv"]
    file(tmp_path, "test.csv", "a\n2\n")
    assert source(tmp_path, split="test").check() == [
        f"{tmp_path} has several files for the split 'test': test.csv, test.tsv. Name one as the source"
    ]


def test_a_file_has_no_split(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.tsv", "a\n1\n")
    assert source(path, split="test").check() == [
        f"split 'test' was asked for, but {path} is one file; a split chooses a file of a folder."
        f" Leave it out, or name the folder: source: {tmp_path}"
    ]


def test_not_there(tmp_path: Path) -> None:
    file(tmp_path, "rows.tsv", "a\n1\n")
    assert source("row.tsv", base=tmp_path).check() == [
        f"there is no file or folder {tmp_path}/row.tsv; {tmp_path} has rows.tsv. A data set of the Hugging Face hub is written hf:ORG/NAME"
    ]


def test_a_file_that_may_not_be_read(tmp_path: Path, forbidden: Callable[[Path], str]) -> None:
    path = file(tmp_path, "rows.parquet", "x")
    objection = forbidden(path)
    assert source(path).check() == [objection]


def test_a_home_folder_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        source("~nosuchuser/rows.tsv", base=tmp_path)
    assert str(caught.value) == (
        "'~nosuchuser/rows.tsv': no home folder is known for ~nosuchuser. Write the path out; a folder of that name is ./~nosuchuser"
    )


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.xlsx", "x")
    assert source(path).check() == [f"{path} is not a data file that can be read: accepted are .tsv, .csv, .jsonl, .parquet"]


def test_outside_the_root(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.tsv", "a\n1\n")
    root = tmp_path / "root"
    root.mkdir()
    expected = f"{path} is outside the allowed root {root}; move it there, or allow a wider root"
    assert source("../rows.tsv", base=root, root=root).check() == [expected]
    (root / "test.tsv").symlink_to(path)
    (objection,) = source(root, split="test", root=root).check()
    assert objection.startswith(f"{root}/test.tsv (it leads to {path}) is outside the allowed root {root}")


def test_sst2(shared: Path) -> None:
    table = source(shared / "data/sst2", split="test").read()
    assert len(table) == 872
    assert set(table.columns["label"]) == {"0", "1"}
    assert table.rows[-1] == "test.tsv:873"
