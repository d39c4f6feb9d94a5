"""`lifecycle quantise`: the rows that it calibrates on, and what it does without any."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.cli.quantise import calibration_rows, quantise
from lifecycle.core.config import ConfigError
from lifecycle.kernels.group_scaled import group_scaled
from lifecycle.testing.families import LLAMA, random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.weights.published import load_weights, save_weights


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


def test_without_texts_matrices_are_rounded_to_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.cli.quantise.start_jax", lambda _: None)
    config = LLAMA.model_copy(update={"vocab_size": 264, "num_layers": 1})
    bundle, out, tokenizer = tmp_path / "bundle", tmp_path / "out", ByteTokenizer()
    bundle.mkdir()
    plain = random_params(config)
    save_weights(config, plain, bundle)
    tokenizer.save(bundle)
    ChatTemplate(tokenizer).save(bundle)
    with pytest.raises(ConfigError, match=r"--rows and --length are of the texts to calibrate on; give --texts"):
        quantise(bundle, out, rows=8)
    quantise(bundle, out)
    read = load_weights(config, out)
    (before,), (after,) = (params["blocks"].values() for params in (plain, read))
    np.testing.assert_array_equal(after["attention"]["q"], group_scaled(before["attention"]["q"], 4).dense(jnp.float32))
    np.testing.assert_array_equal(read["embed"], plain["embed"])
