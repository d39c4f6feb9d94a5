"""`generation_config.json`: the rule for what it leaves out, and that what a run writes reads back as its settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.inference.defaults import (
    GENERATION_FILE,
    GREEDY,
    SamplingConfig,
    end_ids,
    generation_of_run,
    read_generation,
    sampling_of,
)


def write(folder: Path, **generation: object) -> Path:
    (folder / GENERATION_FILE).write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("says", "means"),
    [
        ({}, GREEDY),
        ({"eos_token_id": 2}, GREEDY),  # as transformers: sampling has to be asked for
        ({"do_sample": None, "temperature": None}, GREEDY),
        ({"do_sample": True}, SamplingConfig(temperature=1.0)),
        ({"temperature": 0.6}, SamplingConfig(temperature=0.6)),
        ({"top_p": 0.9}, SamplingConfig(temperature=1.0, top_p=0.9)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, SamplingConfig(temperature=0.6, top_k=20)),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, SamplingConfig(temperature=0.0, top_p=0.9)),
    ],
)
def test_what_a_file_means(tmp_path: Path, says: dict[str, Any], means: SamplingConfig) -> None:
    assert sampling_of(write(tmp_path, **says)) == means


def test_a_folder_without_the_file_is_decoded_greedily(tmp_path: Path) -> None:
    assert read_generation(tmp_path) == {} and sampling_of(tmp_path) == GREEDY


@pytest.mark.parametrize(
    "sampling", [None, GREEDY, SamplingConfig(), SamplingConfig(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05)]
)
def test_what_a_run_writes_reads_back_as_its_setting(tmp_path: Path, sampling: SamplingConfig | None) -> None:
    assert sampling_of(write(tmp_path, **generation_of_run(sampling, None))) == (sampling or GREEDY)


def test_a_sampled_models_file_leaves_nothing_to_other_tools_defaults() -> None:
    expected = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert generation_of_run(SamplingConfig(temperature=0.7), None) == expected


def test_a_run_keeps_what_its_bundle_says_unless_it_says_so_itself(tmp_path: Path) -> None:
    other = {"repetition_penalty": 1.05, "eos_token_id": [2, 7]}
    write(tmp_path, do_sample=True, temperature=0.6, top_k=20, _from_model_config=True, **other)
    kept = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 1.0, "min_p": 0.0}
    assert generation_of_run(None, tmp_path) == kept | other
    assert generation_of_run(GREEDY, tmp_path) == {"do_sample": False, "eos_token_id": [2, 7]}
    replaced = kept | {"temperature": 1.0, "top_k": 0, "top_p": 0.9}  # all of it: none of the bundle's 20 likeliest
    assert generation_of_run(SamplingConfig(top_p=0.9), tmp_path) == replaced | {"eos_token_id": [2, 7]}


def test_a_penalty_is_written_for_greedy_decoding_too_and_read_back(tmp_path: Path) -> None:
    chosen = SamplingConfig(temperature=0.0, repetition_penalty=1.2)
    assert generation_of_run(chosen, None) == {"do_sample": False, "repetition_penalty": 1.2}
    write(tmp_path, **generation_of_run(chosen, None))
    assert sampling_of(tmp_path) == chosen


def test_end_ids_come_alone_in_a_list_or_not_at_all() -> None:
    assert [end_ids({"eos_token_id": ends}) for ends in (2, 0, [2, 7], None)] == [[2], [0], [2, 7], []]
    assert end_ids({}) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"generation_config\.json: not valid JSON: .*; copy it again"),
        (b"\xff\xfe", r"generation_config\.json: not valid JSON: .*; copy it again"),
        (b"[]", r"generation_config\.json: expected a mapping, got list; copy it again"),
        (
            b'{"eos_token_id": [2, "</s>"]}',
            r"generation_config\.json: eos_token_id holds '</s>', which is not a token id",
        ),
        (b'{"eos_token_id": -1}', r"generation_config\.json: eos_token_id holds -1, which is not a token id"),
        (b'{"temperature": -1}', r"generation_config\.json:\s+temperature: .*\(given: -1\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / GENERATION_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        generation_of_run(None, tmp_path)
