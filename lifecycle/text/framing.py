"""Which tokens frame a text: BOS, EOS and padding by name, and whether a text by itself has them.

As `tokenizer_config.json` says, else as the native file does. Source: transformers 5.24, `TokenizersBackend`.
"""

from collections.abc import Mapping
from typing import Any

from lifecycle.text.interface import BOS, CONFIG_FILE, EOS, PAD, TokenizerError


def token_name(config: Mapping[str, Any], key: str) -> str | None:
    """The name under `key`, which the layout allows as a string or as a mapping with `content`."""
    value = config.get(key)
    return value.get("content") if isinstance(value, dict) else value


def listed_specials(config: Mapping[str, Any]) -> list[str]:
    """Names of all special tokens that a `tokenizer_config.json` lists."""
    framing = [token_name(config, key) for key in ("bos_token", "eos_token", "pad_token")]
    more = [v.get("content") if isinstance(v, dict) else v for v in config.get("additional_special_tokens") or ()]
    added = [v["content"] for v in (config.get("added_tokens_decoder") or {}).values() if v.get("special")]
    return [name for name in dict.fromkeys([*framing, *more, *added]) if name]


def adds_bos(config: Mapping[str, Any], has_bos: bool, default: bool) -> bool:
    """Whether contexts begin with BOS: always for a model trained here (`kind`), else as the file says, if it does."""
    said = config.get("add_bos_token")
    return "kind" in config or (has_bos and (said if isinstance(said, bool) else default))


def adds_eos(config: Mapping[str, Any], default: bool) -> bool:
    """Whether a text ends with EOS: always for a model trained here (`kind`), else as the file says, if it does."""
    said = config.get("add_eos_token")
    return "kind" in config or (said if isinstance(said, bool) else default)


def framing_ids(config: Mapping[str, Any], special_ids: Mapping[str, int], where: str) -> tuple[int, int, int]:
    """(bos, eos, pad): from the config's names, else from the usual names; eos stands in for a missing bos or pad."""
    eos = _first(special_ids, token_name(config, "eos_token"), EOS, "<|end_of_text|>", "<|endoftext|>", "<eos>")
    if eos is None:
        raise TokenizerError(f"{where}: no end-of-text token; name it as eos_token in {CONFIG_FILE} of the same folder")
    bos = _bos(config, special_ids)
    pad = _first(special_ids, token_name(config, "pad_token"), PAD)
    return (eos if bos is None else bos, eos, eos if pad is None else pad)


def names_bos(config: Mapping[str, Any], special_ids: Mapping[str, int]) -> bool:
    """Whether there is a BOS: named in the config, or by its usual name unless the config mentions it (null: none)."""
    return _bos(config, special_ids) is not None


def _bos(config: Mapping[str, Any], special_ids: Mapping[str, int]) -> int | None:
    usual = () if "bos_token" in config else (BOS, "<|begin_of_text|>", "<bos>")
    return _first(special_ids, token_name(config, "bos_token"), *usual)


def _first(special_ids: Mapping[str, int], *names: str | None) -> int | None:
    return next((special_ids[name] for name in names if name is not None and name in special_ids), None)
