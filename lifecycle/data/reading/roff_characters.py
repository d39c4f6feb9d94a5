"""The special characters of roff by their names: groff_char(7)."""

# ruff: noqa: RUF001

import re
import sys
import unicodedata

CHARACTERS = {
    "em": "—", "en": "–", "hy": "-", "bu": "•", "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "aq": "'", "dq": '"',
    "ga": "`", "ha": "^", "ti": "~", "rs": "\\", "sl": "/", "sh": "#", "at": "@", "Do": "$", "eu": "€", "Eu": "€",
    "Po": "£", "Ye": "¥", "ct": "¢", "co": "©", "rg": "®", "tm": "™", "sc": "§", "ps": "¶", "dg": "†", "dd": "‡",
    "de": "°", "fm": "′", "sd": "″", "mu": "×", "di": "÷", "+-": "±", "-+": "∓", "pl": "+", "mi": "−", "eq": "=",
    "==": "≡", "!=": "≠", "<=": "≤", ">=": "≥", "~=": "≅", "~~": "≈", "->": "→", "<-": "←", "<>": "↔", "ua": "↑",
    "da": "↓", "rA": "⇒", "lA": "⇐", "hA": "⇔", "fo": "‹", "fc": "›", "Fo": "«", "Fc": "»", "r!": "¡", "r?": "¿",
    "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "/o": "ø", "/O": "Ø", "/l": "ł", "/L": "Ł", "-D": "Ð",
    "Sd": "ð", "TP": "Þ", "Tp": "þ", ".i": "ı", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩",
    "ba": "|", "br": "│", "bv": "|", "ul": "_", "ru": "_", "rn": "‾", "ci": "○", "sq": "□", "OK": "✓", "if": "∞",
    "sr": "√", "sum": "∑", "product": "∏", "integral": "∫", "pd": "∂", "gr": "∇", "mo": "∈", "nm": "∉", "es": "∅",
    "fa": "∀", "te": "∃", "no": "¬", "AN": "∧", "OR": "∨", "ca": "∩", "cu": "∪", "sb": "⊂", "sp": "⊃", "ib": "⊆",
    "ip": "⊇", "c*": "⊗", "c+": "⊕", "pc": "·", "md": "⋅", "12": "½", "14": "¼", "34": "¾", "S1": "¹", "S2": "²",
    "S3": "³", "Of": "ª", "Om": "º", "bb": "¦", "aa": "´", "a^": "^", "a~": "~", "lh": "☜", "rh": "☞", "u2010": "-",
    "bq": "‚", "Bq": "„", "*W": "-", "nb": "⊄", "ne": "≢", "ap": "∼", "pt": "∝", "Ah": "ℵ", "Im": "ℑ", "Re": "ℜ",
    "wp": "℘", "hbar": "ℏ", "lz": "◊",
}  # fmt: skip
_GREEK: dict[str, str] = dict(zip("abgdezyhiklmncoprstufxqw", "αβγδεζηθικλμνξοπρστυφχψω", strict=True))
_ACCENTS = dict(zip("':`^~,ov", "\u0301\u0308\u0300\u0302\u0303\u0327\u030a\u030c", strict=True))
_NUMBER = re.compile(r"(?:char)?(\d{1,3})", re.ASCII)
_CODES = re.compile(r"u([0-9A-F]{4,6}(?:_[0-9A-F]{4,6})*)")


def character(name: str) -> str:
    """A special character, by the name that groff has for it; "" for an unknown one."""
    if known := CHARACTERS.get(name):
        return known
    if len(name) == 2 and name[0] == "*":
        return _GREEK.get(name[1], _GREEK.get(name[1].lower(), "").upper())
    if len(name) == 2 and name[0] in _ACCENTS:
        return unicodedata.normalize("NFC", name[1] + _ACCENTS[name[0]])
    if codes := _CODES.fullmatch(name):
        return "".join(chr(int(code, 16)) for code in codes[1].split("_") if int(code, 16) <= sys.maxunicode)
    if number := _NUMBER.fullmatch(name):
        return chr(int(number[1]))
    return ""
