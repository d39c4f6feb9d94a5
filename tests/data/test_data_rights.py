"""Rights: licences by SPDX's expressions, lists of what is to be forgotten, and addresses in one spelling."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from document_tables import data_config, raw, tagged
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.data.measures.filters import document_steps
from lifecycle.data.selecting.selection import select
from lifecycle.data.web_names import canonical, host_of, hosts_above


def documents(**columns: list[Any]) -> pa.Table:
    """Tagged documents with some columns replaced."""
    count = len(next(iter(columns.values())))
    urls = columns.pop("url", [None] * count)
    rows = [raw(f"text {number}", source="mine", path=f"p{number}") for number in range(count)]
    table = tagged([replace(row, url=url) for row, url in zip(rows, urls, strict=True)])
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values, table.schema.field(at).type))
    return table


def removed(table: pa.Table, **rights: Any) -> dict[int, str]:
    found = select(table, document_steps(data_config(rights=rights))).to_pylist()
    return {row["ordinal"]: f"{row['reason']}: {row['detail']}" for row in found if row["step"] == "rights"}


@pytest.mark.parametrize(
    ("licence", "is_allowed"),
    [
        ("MIT", True), ("GPL-3.0-only", False), ("GPL-3.0-only OR MIT", True), ("MIT AND GPL-3.0-only", False),
        ("MIT AND CC-BY-4.0", True), ("(MIT OR GPL-3.0-only)", True), ("unknown", False), ("MITish", False),
        ("(MIT OR GPL-3.0-only) AND ISC", False), ("(MIT OR GPL-3.0-only) AND CC-BY-4.0", True),
        ("MIT AND (GPL-3.0-only OR (CC-BY-4.0))", True), ("MIT OR GPL-3.0-only AND ISC", True), ("mit", True),
        ("cc-by-4.0 AND Mit", True), ("MIT (see COPYING)", False), ("(MIT", False), ("MIT)", False),
        ("( OR MIT)", False), ("(" * 5_000 + "MIT" + ")" * 5_000, True), ("", False),
    ],
)  # fmt: skip
def test_licences_that_are_allowed(licence: str, is_allowed: bool) -> None:
    found = removed(documents(license=[licence]), licenses=["MIT", "CC-BY-4.0"])
    assert found == ({} if is_allowed else {0: f"license: {licence} is not in data.rights.licenses"})
    assert not removed(documents(license=[licence]))


def test_what_is_to_be_forgotten(tmp_path: Path) -> None:
    urls = ["https://a.org/x", "http://sub.b.org/y?q=1", None, None, "https://other.org/", "no address"]
    table = documents(url=[*urls, "http://a.xn--bcher-kva.example/"])
    ids, contents = table["id"].to_pylist(), table["content"].to_pylist()
    hosts = ["b.org", "her.org", "www.Other.org", "bücher.example"]
    lines = ["# comment", "", "http://www.A.org/x/", *hosts, ids[2].upper(), contents[3].hex()]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    assert removed(table, forget=[str(tmp_path / "list.txt")]) == {
        0: "forgotten: list.txt has its address https://a.org/x",
        1: "forgotten: list.txt has its host b.org",
        2: f"forgotten: list.txt has its id {ids[2]}",
        3: f"forgotten: list.txt has its content {contents[3].hex()}",
        4: "forgotten: list.txt has its host other.org",
        6: "forgotten: list.txt has its host xn--bcher-kva.example",
    }
    assert len(removed(table, opt_outs={"mine": [str(tmp_path / "list.txt")]})) == 6
    (tmp_path / "list.txt").write_text("other.org\n")  # a longer or shorter list counts at once
    assert removed(table, forget=[str(tmp_path / "list.txt")]).keys() == {4}


def test_a_masked_address_is_forgotten_by_the_whole_one(tmp_path: Path) -> None:
    whole = "https://a.org/users/jane@company.org?tel=%2B442079460958"
    table = documents(url=[whole, "https://john@company.org:8080/", "https://93.184.216.34/a"])
    masked = table["url"].to_pylist()
    assert masked == [
        "https://a.org/users/EMAIL_ADDRESS?tel=PHONE_NUMBER", "https://EMAIL_ADDRESS@company.org:8080/",
        "https://93.184.216.34/a",
    ]  # fmt: skip
    alike = documents(url=[whole, whole.replace("jane", "john")])  # masked alike, and no duplicates
    assert len(set(alike["url"].to_pylist())) == 1 and len(set(alike["address"].to_pylist())) == 2
    derived = documents(url=masked)  # rows that a model has written of these documents
    for lines, forgotten in (
        (whole, {0}), ("http://company.org:8080", {1}), ("a.org", {0}), ("company.org\n93.184.216.34", {1, 2}),
    ):  # fmt: skip
        (tmp_path / "list.txt").write_text(lines)
        for rows in (table, derived):
            assert removed(rows, forget=[str(tmp_path / "list.txt")]).keys() == forgotten


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.org\nnonsense\n")
    with pytest.raises(ConfigError, match=r"list\.txt:2: 'nonsense' is no id"):
        removed(documents(url=["x"]), forget=[str(tmp_path / "list.txt")])
    (tmp_path / "list.txt").write_text("x" * 1_000_000)
    with pytest.raises(ConfigError, match=r"list\.txt:1: 'x+\.\.\. is no id") as long:
        removed(documents(url=["x"]), forget=[str(tmp_path / "list.txt")])
    assert len(str(long.value)) < 1000
    (tmp_path / "list.txt").write_bytes("café.org\n".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"list\.txt: no list of text: .* position 3.*; save it as UTF-8"):
        removed(documents(url=["x"]), forget=[str(tmp_path / "list.txt")])
    with pytest.raises(ConfigError, match="No such file"):
        removed(documents(url=["x"]), forget=[str(tmp_path / "none.txt")])
    with pytest.raises(ConfigError, match="no source is named 'yours'"):
        data_config(rights={"opt_outs": {"yours": ["list.txt"]}})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTPS://WWW.Example.ORG:443/A/b/", "example.org/A/b"), ("http://example.org", "example.org"),
        ("http://example.org:8080/?x=1#y", "example.org:8080?x=1"), ("http://[broken", "http://[broken"),
        ("http://example.org:port/a", "example.org/a"), ("just words", "just words"),
        ("https://www.Bücher.example/ä", "xn--bcher-kva.example/ä"), ("http://ü..example/", "ü..example"),
    ],
)  # fmt: skip
def test_addresses_in_one_spelling(url: str, expected: str) -> None:
    assert canonical(url) == expected


@given(st.text())
def test_any_text_may_be_given_as_an_address(text: str) -> None:
    assert isinstance(canonical(text), str) and isinstance(host_of(text), str)


def test_hosts_above() -> None:
    assert list(hosts_above("a.b.org")) == ["a.b.org", "b.org", "org"] and not list(hosts_above(""))
