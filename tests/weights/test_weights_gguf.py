"""GGUF: every encoding gives llama.cpp's values bit by bit, a model keeps its order and tokens, damage is named."""

import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lifecycle.cli.import_weights import find_model, import_gguf, import_model, import_safetensors
from lifecycle.core.artifact import open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.generate import generate
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import RopeScaling
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.gguf_tokenizer import write_tokenizer
from lifecycle.text.interface import TokenizerError
from lifecycle.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from lifecycle.weights.gguf import GgufFile
from lifecycle.weights.gguf_encodings import NAMES, dequantise, encoding_named
from lifecycle.weights.gguf_models import config_of
from lifecycle.weights.published import WEIGHTS, WeightsError, load_config
from tests.golden.make_llama_cpp_golden import BLOCKS, drawn_bytes

GOLDEN = Path(__file__).parents[1] / "golden/gguf_files"
TINY = GOLDEN / "tiny.gguf"
USER = {"role": "user", "content": "a"}
REAL = os.environ.get("LIFECYCLE_SMOLLM2")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "bundle"
    import_gguf(TINY, out)
    return out


def test_a_path_is_enough_to_find_the_model(bundle: Path, tmp_path: Path) -> None:
    assert find_model(TINY) == TINY and find_model(bundle) == bundle
    for name in ("a.gguf", "README.md"):
        (tmp_path / name).write_bytes(TINY.read_bytes() if name == "a.gguf" else b"text")
    assert find_model(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(TINY.read_bytes())
    for path, message in {
        tmp_path: "2 GGUF files; give one of them: a.gguf, b.gguf",
        tmp_path / "README.md": "not a GGUF file; of a model in safetensors give the folder",
        tmp_path / "none": "no such file or folder",
        GOLDEN.parent: "no model here: expected config.json with",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(f"{path}: ") + message):
            find_model(path)
    import_model(str(TINY), tmp_path / "made")
    assert load_bundle(tmp_path / "made").version == load_bundle(bundle).version
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    import_model(str(TINY), tmp_path / "chatty", template=str(tmp_path / "own.jinja"))
    assert load_bundle(tmp_path / "chatty").template.source.startswith("{% for m")


class Built:
    """A GGUF file made by hand: metadata of strings, numbers and lists, and float32 tensors."""

    def __init__(self, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
        for key, value in metadata.items():
            self.data += self._string(key) + self._value(value)
        offset = 0
        for name, tensor in tensors.items():
            shape = tensor.shape[::-1]
            self.data += self._string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
            offset += tensor.nbytes
        self.data += b"\0" * (-len(self.data) % 32) + b"".join(tensor.tobytes() for tensor in tensors.values())

    def _string(self, text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def _value(self, value: Any) -> bytes:
        if isinstance(value, str):
            return struct.pack("<I", 8) + self._string(value)
        if isinstance(value, list):
            items = b"".join(self._value(item)[4:] for item in value)
            return struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 6, len(value)) + items
        return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


SIZES: dict[str, Any] = {
    "general.architecture": "llama", "llama.embedding_length": 64, "llama.block_count": 1,
    "llama.feed_forward_length": 64, "llama.attention.head_count": 2, "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 261,
}  # fmt: skip


def built(folder: Path, metadata: dict[str, Any], **tensors: np.ndarray) -> GgufFile:
    path = folder / "built.gguf"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    path.write_bytes(Built(metadata, named).data)
    return GgufFile(path)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_have_llama_cpps_values_bit_by_bit(name: str) -> None:
    """Any bytes at all, decoded by ggml's C code: infinite scales and NaNs too."""
    expected = np.load(GOLDEN / "llama_cpp.npz")[f"{name}_values"]
    found = dequantise(drawn_bytes(name), encoding_named(name))
    assert found.dtype == np.float32 and np.array_equal(found, expected, equal_nan=True)
    assert np.isfinite(expected).sum() > 100


def test_all_encodings_of_weights_are_known() -> None:
    assert {*BLOCKS, "F32", "F16", "BF16"} == set(NAMES)


def test_a_models_tensors_come_out_in_the_published_order(bundle: Path) -> None:
    expected = json.loads((GOLDEN / "tiny.json").read_text())
    found = load_file(bundle / WEIGHTS)
    assert {name: hashlib.sha256(np.ascontiguousarray(x)).hexdigest() for name, x in found.items()} == expected
    assert GgufFile(TINY).encodings == {
        "BF16": 1, "F16": 1, "F32": 3, "Q4_0": 2, "Q4_1": 1, "Q4_K": 1, "Q6_K": 1, "Q8_0": 1,
    }  # fmt: skip


def test_a_part_of_a_tensor_is_read_without_the_rest() -> None:
    file = GgufFile(TINY)
    for name, shape in file.shapes.items():
        everything = file.read(name, tuple(slice(0, size) for size in shape))
        index = tuple(slice(size // 3, size // 2) for size in shape)
        assert everything.shape == shape and np.array_equal(file.read(name, index), everything[index])


def test_config_and_manifest_say_what_was_imported(bundle: Path) -> None:
    config = load_config(bundle)
    assert (config.d_model, config.d_ff, config.num_layers, config.vocab_size) == (256, 64, 1, 261)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.max_seq_len) == (2, 1, 32, 128)
    assert (config.rope_theta, config.norm_eps, config.tie_embeddings) == (50_000.0, 1e-5, True)
    manifest = open_artifact(bundle).manifest
    assert manifest.stage == "import" and manifest.config == {"source": str(TINY), "dtype": "float32"}


@pytest.mark.slow
def test_the_bundle_answers_through_its_own_template(bundle: Path) -> None:
    model = load_bundle(bundle)
    prompt = model.template.render([{"role": "user", "content": "he 12"}], add_generation_prompt=True)
    assert model.tokenizer.decode(prompt.ids, skip_special=False) == (
        "<|im_start|>user\nhe 12<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.stop_ids == (2,) and model.tokenizer.special_ids["<|endoftext|>"] == 0
    (answer,) = generate(model, [prompt.ids], SamplingParams(temperature=0.0, max_tokens=4), 1)
    assert len(answer.tokens) <= 4


def test_half_the_size_on_request_and_nothing_is_written_over(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    import_gguf(TINY, out, dtype="bfloat16")
    assert {x.dtype.name for x in load_file(out / WEIGHTS).values()} == {"bfloat16"}
    with pytest.raises(ConfigError, match=r"half already exists"):
        import_gguf(TINY, out)
    again = tmp_path / "again"
    import_safetensors(bundle, again)
    assert (again / WEIGHTS).read_bytes() == (bundle / WEIGHTS).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "half"]


def published(bundle: Path, folder: Path, added: list[dict[str, Any]], **config: Any) -> Path:
    """The bundle's files with other added tokens and settings in its tokenizer's."""
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, more in (("tokenizer.json", {"added_tokens": added}), ("tokenizer_config.json", config)):
        tree = json.loads((folder / name).read_text())
        merged = {key: tree.get(key, []) + value if key == "added_tokens" else value for key, value in more.items()}
        (folder / name).write_text(json.dumps(tree | merged))
    return folder


def added(content: str, token_id: int, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


def test_a_tokenizers_further_names_are_neither_read_nor_made(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gemma 3's files name `<image_soft_token>`, one id more than the text model has rows."""
    extra = [added("<image_soft_token>", 261, True), added("<sound>", 262, False)]
    import_safetensors(published(bundle, tmp_path / "published", extra), tmp_path / "out")
    assert "the model has no row for <image_soft_token>, <sound>: neither read nor produced" in capsys.readouterr().out
    model = load_bundle(tmp_path / "out")
    assert model.tokenizer.vocab_size == model.config.vocab_size == 261
    assert max(model.tokenizer.encode("<image_soft_token>")) < 261  # a special token's name in a text is text
    with pytest.raises(TokenizerError, match=r"no row for '<sound>', token 262: its vocabulary ends at 260; remove it"):
        model.tokenizer.encode("a <sound>")
    with pytest.raises(TokenizerError, match=r"no row for '<image_soft_token>', token 261"):
        generate(model, [[5, 261]], SamplingParams(temperature=0.0, max_tokens=1), 1)
    with pytest.raises(TokenizerError, match=r"no row for '<image_soft_token>', token 261"):
        ChatTemplate(model.tokenizer, "<image_soft_token>{{ messages[0].content }}").render([USER])


def test_a_run_takes_over_what_its_bundles_model_has_rows_for(bundle: Path, tmp_path: Path) -> None:
    source = published(bundle, tmp_path / "published", [added("<image_soft_token>", 261, True)])
    import_safetensors(source, tmp_path / "out")
    config = TokenizerConfig(kind="hf", path=str(tmp_path / "out"))
    stats = train_tokenizer(config, [], tmp_path / "run", seed=0)
    assert stats["vocab_size"] == load_tokenizer(tmp_path / "run").vocab_size == 261
    assert stats["fingerprint"] == load_tokenizer(tmp_path / "out").fingerprint
    assert "model_rows" not in json.loads((bundle / "tokenizer_config.json").read_text())  # for a model with all rows


def test_the_tokenizer_of_a_larger_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    source = published(bundle, tmp_path / "published", [])
    tree = json.loads((source / "tokenizer.json").read_text())
    tree["model"]["vocab"]["hq"] = 261
    (source / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(
        TokenizerError, match=r"has 262 ids, model\.vocab_size=261: .*'hq' \(id 261\); use the tokenizer"
    ):
        import_safetensors(source, tmp_path / "out")


def test_a_context_begins_as_the_file_says(bundle: Path, tmp_path: Path) -> None:
    """GGUF's key, else llama.cpp's rule; `--tokenizer`'s own rule in a folder of published files."""
    metadata, model = dict(GgufFile(TINY).metadata), load_bundle(bundle)
    assert not model.tokenizer.adds_bos and model.tokenizer.begin([7]) == [7]
    for number, (change, is_added) in enumerate(
        [({"pre": "llama-bpe"}, True), ({"pre": "llama-bpe", "add_bos_token": False}, False), ({}, False),
         ({"add_bos_token": True}, True)]
    ):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        changed = metadata | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
        assert write_tokenizer(changed, tmp_path / str(number), "built").adds_bos == is_added


def test_an_import_tells_what_its_chat_template_cannot_do(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published(bundle, tmp_path / "published", [])
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        "<|im_start|>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    import_safetensors(source, tmp_path / "out")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("chat template")]
    assert told == [
        "chat template: no system message: No system role",
        "chat template: it cuts <think> from earlier answers: for training give each answer as prompt and completion",
    ]


def test_an_import_that_fails_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for file in bundle.iterdir():
        if "tokenizer" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"no tokenizer here.*; or give a folder with a tokenizer by --tokenizer"):
        import_safetensors(folder, tmp_path / "out")
    import_safetensors(folder, tmp_path / "out", tokenizer=bundle)
    (folder / "generation_config.json").write_text('{"top_p": 3}')
    with pytest.raises(ConfigError, match=r"generation_config\.json:\s+top_p: .*\(given: 3\)"):
        import_safetensors(folder, tmp_path / "other", tokenizer=bundle)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(
        WeightsError,
        match=r"published does not fit .*\n.*tokens\.weight: shape \(261, 256\), the config says \(100, 256",
    ):
        import_safetensors(folder, tmp_path / "other", tokenizer=bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "published"]


def with_array(content: bytes, item: int, count: int) -> bytes:
    """The file with a key before all others: an array of this value type and length."""
    key = struct.pack("<Q", 1) + b"x" + struct.pack("<IIQ", 9, item, count)
    return content[:16] + struct.pack("<Q", int.from_bytes(content[16:24], "little") + 1) + key + content[24:]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    content = TINY.read_bytes()
    path = tmp_path / "damaged.gguf"
    for damaged, message in [
        (b"GGML" + content[4:], r"does not begin with GGUF"),
        (content[:4] + struct.pack("<I", 1) + content[8:], r"version 1; supported: \(2, 3\)"),
        (content[:3000], r"not a complete GGUF file \(its header is truncated\)"),
        (content[:-1000], r"bytes, too few for 1 of its tensors, output_norm.weight first; copy it again"),
        (content[:24] + struct.pack("<Q", 1 << 60) + content[32:], r"a value of \d+ bytes"),
        (with_array(content, 0, 1 << 40), r"a value of 1099511627776 bytes"),
        (with_array(content, 9, 1), r"an array of value type 9"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=message):
            GgufFile(path)
    with pytest.raises(WeightsError, match=r"nowhere: no such file"):
        GgufFile(tmp_path / "nowhere")


def test_an_encoding_that_is_not_known_is_named(tmp_path: Path) -> None:
    content = TINY.read_bytes()
    at = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    path = tmp_path / "q1.gguf"
    path.write_bytes(content[:at] + struct.pack("<I", 41) + content[at + 4 :])
    with pytest.raises(WeightsError, match=r"1 tensors .*token_embd\.weight \(type 41\); supported: F32, F16, BF16"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"general.architecture": "mamba"},
            r"architecture 'mamba' is not .*, olmo2, gpt-oss are: import the model from",
        ),
        ({"general.architecture": "gemma2", "gemma2.expert_count": 8}, r"architecture 'gemma2' with experts is not"),
        ({"llama.expert_count": 8}, r"built\.gguf: GGUF metadata: missing expert_used_count"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_shared_count": 1}, r"shared_count=1 is"),
        ({"llama.rope.dimension_count": 16}, r"llama\.rope\.dimension_count=16"),
        ({"llama.rope.scaling.type": "longrope"}, r"rope\.scaling\.type='longrope' is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, r"built\.gguf: GGUF metadata:\s+rope_scaling\.factor: Field required"),
        ({"llama.attention.head_count": [2.0, 4.0]}, r"head_count=\[2\.0, 4\.0\]: expected one positive number"),
        ({"llama.attention.head_count": 0}, r"llama\.attention\.head_count=0: expected one positive number"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        config_of(built(tmp_path, SIZES | change))
    with pytest.raises(WeightsError, match=r"its metadata lacks llama\.block_count"):
        config_of(built(tmp_path, {key: value for key, value in SIZES.items() if key != "llama.block_count"}))


def test_llama3s_scaling_is_found_from_its_factors(tmp_path: Path) -> None:
    """The factors as the published code has them: whole below a wave length, none above another, a ramp between."""
    factors = np.ones(16, np.float32)
    for pair in range(16):
        wave = 2 * np.pi * 500_000.0 ** (2 * pair / 32)
        if wave > 8192:
            factors[pair] = 32.0
        elif wave > 2048:
            smooth = (8192 / wave - 1) / 3
            factors[pair] = 1 / ((1 - smooth) / 32 + smooth)
    metadata = SIZES | {"llama.rope.freq_base": 500_000.0}
    config = config_of(built(tmp_path, metadata, rope_freqs__weight=factors))
    assert config.rope_scaling == RopeScaling(kind="llama3", factor=32.0, original_max_seq_len=8192)
    factors[4] += 0.5
    with pytest.raises(WeightsError, match=r"rope_freqs\.weight is not Llama 3's scaling"):
        config_of(built(tmp_path, metadata, rope_freqs__weight=factors))


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("gpt-2", ["a", " 1234", "'ll", " B"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "'ll", " B"]),
        ("llama-bpe", ["a", " ", "123", "4", "'ll", " B"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "'ll", " B"]),
        ("dbrx", ["a", " ", "123", "4", "'ll", " B"]),
        ("gpt-4o", ["a", " ", "123", "4", "'ll", " B"]),
        ("tekken", ["a", " ", "1", "2", "3", "4", "'ll", " B"]),
    ],
)
def test_text_is_cut_as_the_files_pattern_says(pattern: str, pieces: list[str], tmp_path: Path) -> None:
    """Every byte is a token and every piece of the text too, so that ids show where it was cut."""
    metadata = dict(GgufFile(TINY).metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"][:259]
    merges: list[str] = []
    for text in (" 1234", "1234", "123", "12", "34", "'ll", " B", " 1"):
        written = text.replace(" ", "\u0120")
        for end in range(2, len(written) + 1):
            if written[:end] not in tokens:
                tokens.append(written[:end])
                merges.append(f"{written[: end - 1]} {written[end - 1]}")
    metadata |= {
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges, "tokenizer.ggml.pre": pattern,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
    }  # fmt: skip
    tokenizer = write_tokenizer(metadata, tmp_path, "built")
    found = [tokenizer.token_bytes(number).decode() for number in tokenizer.encode("a 1234'll B")]
    assert found == pieces


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merges": None}, r"it has no list of tokens, or none of merges"),
        ({"token_type": [1]}, r"it does not have one type for each of its 261 tokens"),
        ({"merges": ["h q"]}, r"merge 'h q' does not make a token of two tokens"),
        ({"merges": ["he"]}, r"merge 'he' does not make a token of two tokens"),
        ({"eos_token_id": 261}, r"eos_token is number 261 of 261 tokens"),
    ],
)
def test_a_damaged_tokenizer_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    metadata = GgufFile(TINY).metadata | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(TokenizerError, match=rf"built: its tokenizer is damaged: {message}; copy .* with --tokenizer"):
        write_tokenizer(metadata, tmp_path, "built")


def test_a_tokenizer_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    metadata = GgufFile(TINY).metadata
    with pytest.raises(TokenizerError, match=r"tokenizer of kind 't5'.* --tokenizer"):
        write_tokenizer(metadata | {"tokenizer.ggml.model": "t5"}, tmp_path, "file")
    with pytest.raises(TokenizerError, match=r"pre-tokenizer 'bloom'; known: gpt-2, smollm"):
        write_tokenizer(metadata | {"tokenizer.ggml.pre": "bloom"}, tmp_path, "file")
