"""The config tree: what is wrong is named with its place and the nearest right name; presets and overrides resolve."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, SerializeAsAny, model_validator

from lifecycle.core import config
from lifecycle.core.config import ConfigError, Section, VariantSection, digest, load_config, validate
from lifecycle.core.one_or_named import one_or_named


class Source(Section):
    path: str
    weight: float = 1.0


class Model(Section):
    preset_folder: ClassVar[str | None] = "models"
    d_model: int
    num_layers: int = 2


class Run(Section):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)
    model: Model
    models: Annotated[Model | dict[str, Model], one_or_named(Model)] = Model(d_model=1)
    by_name: dict[str, Model] = Field(default={})
    levels: dict[str, float] = Field(default={})
    renamed: int = Field(default=0, validation_alias="as")
    sources: list[Source] = Field(default=[])
    drafts: list[Model] | None = None
    extra: Source | None = None
    steps: int = 1
    pair: tuple[Source, ...] = ()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.yaml").write_text("d_model: 8\nnum_layers: 3\n")
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def load(folder: Path, text: str, *overrides: str) -> Run:
    path = folder / "run.yaml"
    path.write_text(text)
    return load_config(Run, path, overrides)


def test_presets_resolve_bare_and_with_changes(folder: Path) -> None:
    assert load(folder, "model: small").model == Model(d_model=8, num_layers=3)
    assert load(folder, "model: {preset: small, num_layers: 5}").model == Model(d_model=8, num_layers=5)


def test_changes_of_a_preset_leave_what_they_do_not_name(folder: Path) -> None:
    """However deep, on the command line too; `null` takes a section away."""
    (folder.parent / "models" / "deep.yaml").write_text(
        "d_model: 8\nblock: {norm: {eps: 2, scale: 3}, width: 4, norms: {a: {eps: 1, scale: 5}, b: {eps: 6}}}\n"
    )

    class Norm(Section):
        eps: int = 0
        scale: int = 0

    class Block(Section):
        norm: Norm | None = Norm()
        width: int = 0
        norms: dict[str, Norm] = Field(default={})

    class Deep(Section):
        preset_folder: ClassVar[str | None] = "models"
        d_model: int
        block: Block = Block()

    class DeepRun(Section):
        model: Deep

    def block(text: str, *overrides: str) -> Block:
        (folder / "deep.yaml").write_text(text)
        return load_config(DeepRun, folder / "deep.yaml", overrides).model.block

    norms = {"a": Norm(eps=1, scale=5), "b": Norm(eps=6)}
    whole = Block(norm=Norm(eps=2, scale=3), width=4, norms=norms)
    assert block("model: deep") == whole
    changed = whole.model_copy(update={"norm": Norm(eps=7, scale=3)})
    assert block("model: {preset: deep, block: {norm: {eps: 7}}}") == changed
    assert block("model: deep", "model.block.norm.eps=7") == changed
    assert block("model: {preset: deep, block: {norm: null}}") == whole.model_copy(update={"norm": None})
    changed = whole.model_copy(update={"norms": norms | {"a": Norm(eps=7, scale=5)}})
    assert block("model: {preset: deep, block: {norms: {a: {eps: 7}}}}") == changed
    assert block("model: deep", "model.block.norms.a.eps=7") == changed
    fewer = block("model: {preset: deep, block: {norms: {a: null, c: {scale: 1}}}}")
    assert fewer.norms == {"b": Norm(eps=6), "c": Norm(scale=1)}


def test_a_preset_names_no_other_one(folder: Path) -> None:
    (folder.parent / "models" / "outer.yaml").write_text("preset: small\nd_model: 4\n")
    with pytest.raises(ConfigError, match=r"outer\.yaml: a preset names no other one"):
        load(folder, "model: outer")


def test_the_package_s_presets_come_last(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "package"
    (own / "models").mkdir(parents=True)
    for name, d_model in (("small", 1), ("large", 100)):
        (own / "models" / f"{name}.yaml").write_text(f"d_model: {d_model}\n")
    monkeypatch.setattr(config, "OWN_PRESETS", own)
    assert load(folder, "model: large").model == Model(d_model=100)
    assert load(folder, "model: small").model == Model(d_model=8, num_layers=3)  # above the run file
    (folder / "models").mkdir()
    (folder / "models" / "small.yaml").write_text("d_model: 16\n")
    assert load(folder, "model: small").model == Model(d_model=16)  # beside it
    with pytest.raises(ConfigError, match=r"no preset 'lrge' in models/ .*; did you mean 'large'"):
        load(folder, "model: lrge")


def test_presets_resolve_in_lists(folder: Path) -> None:
    run = load(folder, "model: small\ndrafts: [small, {d_model: 4}]")
    assert run.drafts == [Model(d_model=8, num_layers=3), Model(d_model=4)]


def test_presets_resolve_in_mappings_by_name(folder: Path) -> None:
    run = load(folder, "model: small\nby_name: {a: small, b: {preset: small, num_layers: 5}}", "by_name.a.d_model=2")
    assert run.by_name == {"a": Model(d_model=2, num_layers=3), "b": Model(d_model=8, num_layers=5)}


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("small", Model(d_model=8, num_layers=3)),
        ("{d_model: 4}", Model(d_model=4)),
        ("{preset: small, d_model: 4}", Model(d_model=4, num_layers=3)),
        ("{a: small, b: {d_model: 4}}", {"a": Model(d_model=8, num_layers=3), "b": Model(d_model=4)}),
    ],
)
def test_one_section_or_several_by_name(folder: Path, text: str, models: Model | dict[str, Model]) -> None:
    run = load(folder, f"model: small\nmodels: {text}")
    assert run.models == models
    assert validate(Run, run.plain()) == run


def test_overrides_change_scalars_and_presets(folder: Path) -> None:
    run = load(folder, "model: small", "model.d_model=16", "steps=7", "extra.path=a=b", "extra.weight=2e-1")
    assert run.model == Model(d_model=16, num_layers=3)
    assert run.steps == 7 and run.extra == Source(path="a=b", weight=0.2)
    assert load(folder, "model: small", "model={d_model: 4}").model.d_model == 4


def test_overrides_add_to_a_mapping_of_values(folder: Path) -> None:
    assert load(folder, "model: small", "levels.high=2", "as=3").levels == {"high": 2}


def test_merge_keys_of_yaml_are_no_second_keys(folder: Path) -> None:
    text = "model: &m {d_model: 8}\nby_name: {a: {<<: *m, num_layers: 4}}"
    assert load(folder, text).by_name["a"] == Model(d_model=8, num_layers=4)


def test_lists_of_sections_are_read_and_named_by_index(folder: Path) -> None:
    run = load(folder, "model: small\nsources:\n- {path: a}\n- {path: b, weight: 2}\npair: [{path: c}]")
    assert run.sources == [Source(path="a"), Source(path="b", weight=2)] and run.pair == (Source(path="c"),)
    with pytest.raises(ConfigError, match=r"sources\.1\.wieght: no such setting; did you mean 'weight'\?"):
        load(folder, "model: small\nsources:\n- {path: a}\n- {path: b, wieght: 2}")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("model: small\nstep: 3", (), r"run\.yaml:\n  step: no such setting; did you mean 'steps'\?"),
        ("model: small", ("model.num_layer=3",), r"model\.num_layer: no such setting; did you mean 'num_layers'\?"),
        (
            "model: small\nqqq: 1",
            (),
            r"qqq: no such setting; known: as, by_name, drafts, extra, levels, model, models, pair, sources, steps",
        ),
        ("model: {presett: small, d_model: 1}", (), r"model\.presett: no such setting; did you mean 'preset'\?"),
        ("model: small\nsteps: many", (), r"steps: .*valid integer.*\(given: 'many'\)"),
        ("model: {num_layers: 2}", (), r"model\.d_model: Field required$"),
        ("extra: {path: a, pth: b}\nmodel: small", (), r"extra\.pth: no such setting; did you mean 'path'\?"),
        ("model: smal", (), r"no preset 'smal' in models/ .*; did you mean 'small'\?"),
        ("model: ../secret", (), r"preset '../secret': a preset is a bare name"),
        ("model: {preset: .hidden}", (), r"preset '.hidden': a preset is a bare name"),
        ("a: [1", (), r"run\.yaml: not valid YAML: (?s:.*)line 1"),
        ("- 1\n- 2", (), r"run\.yaml: expected a mapping of sections, got list"),
        ("", (), r"run\.yaml: expected a mapping of sections, got NoneType"),
        ("model: small", ("steps",), r"override 'steps': expected key=value"),
        ("model: small", ("=3",), r"override '=3': expected key=value"),
        ("model: small\nsteps: 3", ("steps.more=3",), r"override 'steps.more=3': steps is not a section"),
        ("model: small\nsteps: null", ("steps.more=3",), r"steps is not a section but null; write steps=\{more: 3\}"),
        ("model: small", ("steps=[1",), r"override 'steps=\[1': the value is not valid YAML"),
        ("model: small\nsteps: 1\nsteps: 2", (), r"the key 'steps' was given in line 2 already(?s:.*)line 3"),
        ("model: small\n? [a, b]\n: c", (), r"a list or mapping as a key(?s:.*)line 2"),
        ("model: small\nby_name: {a: small, a: small}", (), r"the key 'a' was given in line 2 already"),
        ("model: small", ("model={d_model: 1, d_model: 2}",), r"the key 'd_model' was given in line 1 already"),
        ("model: small\nby_name: {ab: small}", ("by_name.aa.d_model=1",), r"by_name has no 'aa'; did you mean 'ab'\?"),
        ("model: small\nby_name: {a: {d_modle: 1}}", (), r"by_name\.a\.d_modle: .*did you mean 'd_model'\?"),
        ("model: small\nmodels: {a: {d_modle: 1}}", (), r"models\.a\.d_modle: .*did you mean 'd_model'\?"),
        ("model: small\nmodels: {d_model: 1, layers: 1}", (), r"models\.layers: .*did you mean 'num_layers'\?"),
        ("model: small\nmodels: {a: {num_layers: 1}}", (), r"models\.a\.d_model: Field required"),
        ("model: small\nmodels: 3", (), r"models: Input should be a valid dictionary"),
        ("model: small\nas_: 1", (), r"as_: no such setting; did you mean 'as'\?"),
        ("model: small\nsteps: true", (), r"steps: expected a number \(given: True\)"),
        ("model: small\nsources: [{path: a, weight: false}]", (), r"sources\.0\.weight: expected a number"),
        ("model: small\nsteps: 18446744073709551616", (), r"steps: larger than 18,446,744,073,709,551,615"),
        ("model: small", ("steps=-" + "9" * 30,), r"steps: larger than"),
        ("model: small\nextra: {path: !!binary aGk=}", (), r"run\.yaml: not valid YAML: (?s:.*)binary"),
        pytest.param("[" * 5000 + "]" * 5000, (), r"run\.yaml: not valid YAML: nested too deeply", id="nested"),
        ("model: small\nextra: &a {path: *a}", (), r"run\.yaml: not valid YAML: more than 100,000 values"),
        (BOMB, (), r"run\.yaml: not valid YAML: more than 100,000 values, aliases written out"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folder, text, *overrides)


def test_dates_stay_text(folder: Path) -> None:
    assert load(folder, "model: small\nextra: {path: 2026-11-28}").extra == Source(path="2026-11-28")


@pytest.mark.parametrize("content", [b"\x00\x01\xfe\xff", "name: M\u00fcnchen".encode("latin-1")])
def test_files_that_are_not_utf_8_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml: not (UTF-8|valid YAML)"):
        load_config(Run, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such config file"):
        load_config(Run, tmp_path / "gone.yaml")


def test_all_errors_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Run, {"model": {"d_model": "x", "nm": 1}, "steps": "y"})
    assert str(caught.value).count("\n") == 3


def test_an_error_of_a_whole_section_does_not_show_all_of_it() -> None:
    class Checked(Section):
        a: int

        @model_validator(mode="after")
        def _check(self) -> "Checked":
            raise ValueError("a does not fit")

    with pytest.raises(ConfigError, match=r"a does not fit$"):
        validate(Checked, {"a": 1})


def test_a_section_is_frozen_and_its_plain_form_builds_it_again() -> None:
    run = Run(model=Model(d_model=4), sources=[Source(path="a")])
    with pytest.raises(ValueError, match="frozen"):
        run.steps = 3  # pyrefly: ignore[read-only] - what is tested
    assert validate(Run, run.plain()) == run


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def reordered(value: object) -> object:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=5), VALUES, min_size=1))
def test_a_digest_depends_on_values_and_not_on_the_order_of_keys(tree: dict) -> None:
    assert digest(reordered(tree)) == digest(tree)
    key = next(iter(tree))
    assert digest(tree | {key: [tree[key]]}) != digest(tree)


class Shape(VariantSection):
    variant_key: ClassVar[str] = "kind"
    name: str
    kind: str

    @classmethod
    def variants(cls) -> Mapping[str, type[VariantSection]]:
        return {"circle": Circle, "square": Square}


class Circle(Shape):
    radius: float = 1.0


class Square(Shape):
    side: Source | None = None


class Drawing(Section):
    shapes: tuple[SerializeAsAny[Shape], ...] = ()
    named: dict[str, SerializeAsAny[Shape]] | None = None
    one: SerializeAsAny[Shape] | None = None


def test_a_section_is_read_as_the_variant_that_it_names() -> None:
    circle = {"name": "a", "kind": "circle", "radius": 2.0}
    square = {"name": "b", "kind": "square", "side": {"path": "p", "weight": 1.0}}
    tree = {"shapes": [circle, square], "named": {"x": square}, "one": circle}
    drawing = validate(Drawing, tree)
    assert drawing.shapes == (
        Circle(name="a", kind="circle", radius=2.0),
        Square(name="b", kind="square", side=Source(path="p")),
    )
    assert drawing.plain() == tree
    assert validate(Drawing, drawing.plain()) == drawing
    options = Drawing.model_json_schema()["$defs"]["Shape"]["oneOf"]
    assert [option["properties"]["kind"] for option in options] == [{"const": "circle"}, {"const": "square"}]
    assert "radius" in options[0]["properties"] and "radius" not in options[1]["properties"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"one": {"name": "a", "kind": "circle", "raduis": 1}}, r"one\.raduis: no such setting; did you mean 'radius'"),
        ({"one": {"name": "a", "kind": "square", "radius": 1}}, r"one\.radius: no such setting; known: .*side"),
        ({"shapes": [{"name": "a", "kind": "circle", "radius": "q"}]}, r"shapes\.0\.radius: .*\(given: 'q'\)"),
        ({"named": {"x": {"name": "a", "kind": "circle", "nme": 1}}}, r"named\.x\.nme: .*did you mean 'name'"),
        ({"one": {"name": "a", "kind": "square", "side": {"pth": "p"}}}, r"one\.side\.pth: .*did you mean 'path'"),
        (
            {"shapes": [{"name": "a", "kind": "cirlce"}]},
            r"shapes\.0: kind 'cirlce' is not known; did you mean 'circle'",
        ),
        ({"shapes": [{"name": "a"}]}, r"shapes\.0: kind is missing; known: circle, square"),
        ({"shapes": [{"name": "a", "kind": []}]}, r"shapes\.0: kind \[\] is not known"),
        ({"shapes": ["circle"]}, r"shapes\.0: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_variant_is_named_with_the_nearest(tree: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(Drawing, tree)
