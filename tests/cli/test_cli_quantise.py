"""The rows that `lifecycle quantise` calibrates on."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.cli.quantise import calibration_rows
from lifecycle.core.config import ConfigError
from lifecycle.text.byte_tokenizer import ByteTokenizer


def test_rows_are_the_texts_one_after_the_other(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    lines, table = tmp_path / "texts.jsonl", tmp_path / "kept-00000.parquet"
    lines.write_text('{"text": "ab"}\n{"text": "cde"}\n')
    pq.write_table(pa.table({"id": [1, 2], "text": ["ab", "cde"]}), table)
    begin, end = tokenizer.bos_id, tokenizer.eos_id
    expected = [[begin, *b"ab", end], [begin, *b"cde"]]
    for file in (lines, table):
        assert calibration_rows(file, tokenizer, 2, 4).tolist() == expected
        with pytest.raises(ConfigError, match="9 tokens, fewer than 3 rows of 4"):
            calibration_rows(file, tokenizer, 3, 4)


@pytest.mark.parametrize("line", ["{", '{"prompt": "a"}', '{"text": 3}', "[1]"])
def test_a_line_without_a_text_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "ab"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"texts.jsonl, line 2: not a JSON object"):
        calibration_rows(file, ByteTokenizer(), 2, 4)


def test_a_table_without_texts_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"]}), file)
    with pytest.raises(ConfigError, match="no column `text`, but prompt"):
        calibration_rows(file, ByteTokenizer(), 1, 4)
