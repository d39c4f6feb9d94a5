"""Numbers that states give to persons: those whose form or check digits can be verified.

What many other numbers look like counts only behind a word that names it. The rules are those that each authority
publishes; check digits find nine tenths and more of the numbers that only look alike.
"""

import re
from calendar import monthrange
from collections import Counter
from collections.abc import Callable

from lifecycle.data.personal.checksums import luhn_valid, mod_11_10_valid, verhoeff_valid, weighted
from lifecycle.data.personal.pii_rule import (
    Found,
    Rule,
    Sign,
    Where,
    before,
    is_bare_in_code,
    is_dumped,
    is_numbered,
    whole,
)

_GAP = rb"(?:[ -]|\xc2\xa0)?"


def _is_date(day: str, month: str, year: str) -> bool:
    """Whether a date of a century exists; in the years 00 the 29th of February counts."""
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return False
    return int(day) <= 28 or int(day) <= monthrange(2000 + int(year[-2:]), int(month))[1]


def _us_ssn(code: str) -> bool:
    area, group, serial = code[:3], code[3:5], code[5:]
    is_published = code in ("078051120", "219099999", "123456789")  # in advertisements and forms
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000" and not is_published


def _us_itin(code: str) -> bool:
    group = int(code[3:5])
    return code[0] == "9" and (50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99)


def _uk_nino(code: str) -> bool:
    return code[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _uk_nhs(code: str) -> bool:
    check = 11 - weighted(code[:9], range(10, 1, -1)) % 11
    return check % 11 == int(code[9]) and check != 10


def _de_tax_id(code: str) -> bool:
    counts = sorted(Counter(code[:10]).values())
    return code[0] != "0" and counts[-1] in (2, 3) and counts[-2] == 1 and mod_11_10_valid(code)


def _fr_nir(code: str) -> bool:
    number = code[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(code[13:])


def _es_dni(code: str) -> bool:
    number = code[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == code[-1]


_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _it_fiscal(code: str) -> bool:
    values = [int(character, 36) - (0 if character.isdigit() else 10) for character in code[:15]]
    total = sum(_ODD[value] if at % 2 == 0 else value for at, value in enumerate(values))
    return chr(ord("A") + total % 26) == code[15]


def _br_cpf(code: str) -> bool:
    def check(size: int) -> int:
        return weighted(code[:size], range(size + 1, 1, -1)) * 10 % 11 % 10

    return len(set(code)) > 1 and check(9) == int(code[9]) and check(10) == int(code[10])


def _pl_pesel(code: str) -> bool:
    month = int(code[2:4]) % 20
    is_date = _is_date(code[4:6], str(month), code[:2])
    return is_date and weighted(code, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def _nl_bsn(code: str) -> bool:
    return int(code) > 0 and weighted(code, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def _se_personal(code: str) -> bool:
    number = code[-10:]
    day = int(number[4:6])
    return _is_date(str(day - 60 if day > 60 else day), number[2:4], number[:2]) and luhn_valid(number)


def _fi_personal(code: str) -> bool:
    number = int(code[:6] + code[-4:-1])
    return _is_date(code[:2], code[2:4], code[4:6]) and "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == code[-1]


def _no_birth(code: str) -> bool:
    day = int(code[:2])
    is_date = _is_date(str(day - 40 if day > 40 else day), code[2:4], code[4:6])
    first = weighted(code[:10], (3, 7, 6, 1, 8, 9, 4, 5, 2, 1))
    return is_date and first % 11 == 0 and weighted(code, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def _be_national(code: str) -> bool:
    check = int(code[9:])
    is_date = _is_date(code[4:6], code[2:4], code[:2])
    return is_date and any(97 - int(century + code[:9]) % 97 == check for century in ("", "2"))


def _ch_insured(code: str) -> bool:
    return weighted(code, (1, 3) * 6 + (1,)) % 10 == 0


def _au_tax_file(code: str) -> bool:
    return weighted(code, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _cn_resident(code: str) -> bool:
    check = "10X98765432"[weighted(code[:17], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11]
    return _is_date(code[12:14], code[10:12], code[6:10]) and check == code[17].upper()


def _kr_resident(code: str) -> bool:
    check = (11 - weighted(code[:12], (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10
    return _is_date(code[4:6], code[2:4], code[:2]) and check == int(code[12])


def _mx_curp(code: str) -> bool:
    values = [int(character, 36) + (character > "N") for character in code[:17]]  # Ñ follows N in Mexico's alphabet
    check = -sum(value * (18 - at) for at, value in enumerate(values)) % 10
    return _is_date(code[8:10], code[6:8], code[4:6]) and check == int(code[17])


def _tr_identity(code: str) -> bool:
    digits = [int(digit) for digit in code]
    first = (sum(digits[0:9:2]) * 7 - sum(digits[1:8:2])) % 10
    return first == digits[9] and sum(digits[:10]) % 10 == digits[10]


def _ro_personal(code: str) -> bool:
    check = weighted(code[:12], (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return _is_date(code[5:7], code[3:5], code[1:3]) and (1 if check == 10 else check) == int(code[12])


def _cl_rut(code: str) -> bool:
    total = weighted(code[-2::-1], (2, 3, 4, 5, 6, 7, 2, 3)[: len(code) - 1])
    return "0K987654321"[total % 11] == code[-1].upper()


def _ar_cuit(code: str) -> bool:
    return weighted(code, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def _sg_nric(code: str) -> bool:
    total = weighted(code[1:8], (2, 7, 6, 5, 4, 3, 2)) + (4 if code[0] in "TG" else 0)
    return ("JZIHGFEDCBA" if code[0] in "ST" else "XWUTRQPNMLK")[total % 11] == code[8]


def _hk_identity(code: str) -> bool:
    values = [36] * (9 - len(code)) + [int(character, 36) for character in code]  # a blank is 36
    return sum(value * weight for value, weight in zip(values, range(9, 0, -1), strict=True)) % 11 == 0


def _tw_identity(code: str) -> bool:
    region = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(code[0]) + 10
    return (region // 10 + region % 10 * 9 + weighted(code[1:], (8, 7, 6, 5, 4, 3, 2, 1, 1))) % 10 == 0


def _jp_individual(code: str) -> bool:
    total = weighted(code[10::-1], (2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6)) % 11
    return int(code[11]) == (0 if total < 2 else 11 - total)


def _cz_birth(code: str) -> bool:
    month = int(code[2:4]) % 50 % 20  # 50 more for women, 20 more where a day's numbers are used up
    return _is_date(code[4:6], str(month), code[:2]) and int(code) % 11 == 0


def _ru_snils(code: str) -> bool:
    return weighted(code[:9], range(9, 0, -1)) % 101 % 100 == int(code[9:])


def _za_identity(code: str) -> bool:
    return _is_date(code[4:6], code[2:4], code[:2]) and luhn_valid(code)


def _dk_cpr(code: str) -> bool:  # numbers of today have no check digit
    return _is_date(code[:2], code[2:4], code[4:6])


def _pt_tax(code: str) -> bool:
    check = 11 - weighted(code[:8], range(9, 1, -1)) % 11
    return int(code[8]) == (0 if check > 9 else check)


def _ie_pps(code: str) -> bool:
    second = 0 if code[8:] in ("", "W") else ord(code[8]) - ord("A") + 1
    total = weighted(code[:7], range(8, 1, -1)) + 9 * second
    return "WABCDEFGHIJKLMNOPQRSTUV"[total % 23] == code[7]


_GAPS = bytes(byte for byte in range(256) if byte >= 128 or not chr(byte).isalnum())


def _rule(
    name: str, least: int, pattern: bytes, is_valid: Callable[[str], bool], words: bytes = b"", bare_words: bytes = b"",
    number: int = 0, needs: bytes = b"",
) -> Rule:  # fmt: skip
    """A rule for a kind of number, of `least` digits or, if 0, in a long word. It counts behind one of `words` only, as
    digits alone behind one of `bare_words`; without either, unless the words before name the number of a thing.
    `number`: of the digits those that are always in a row; `needs`: bytes of which one is always there."""
    named = re.compile(words or bare_words) if words or bare_words else None

    def check(match: re.Match[bytes], where: Where) -> Found | None:
        code = match[0].translate(None, _GAPS).decode()
        if not is_valid(code) or is_bare_in_code(match, where) or is_dumped(match):
            return None
        needs_name = bool(words) or (bool(bare_words) and match[0].isdigit())
        is_named = named is not None and named.search(before(match).lower()) is not None
        if needs_name and not is_named:
            return None
        return whole(match, code) if is_named or not is_numbered(match) else None

    bounded = re.compile(rb"(?<![\w.+-])(?:" + pattern.replace(b"_", _GAP) + rb")(?![\w]|[.-]\d)")
    sign = Sign.DIGITS if least else Sign.TOKEN
    return Rule(
        "national_id", name, sign, bounded, check, least, named if words else None, least_number=number, needs=needs
    )


# In patterns an underscore is an optional gap.
NATIONAL_IDS = (
    _rule("us_ssn", 9, rb"\d{3}-\d\d-\d{4}", _us_ssn, number=4, needs=b"-"),
    _rule("us_ssn", 9, rb"\d{3} ?\d\d ?\d{4}", _us_ssn, rb"ssn|social security|soc\.? sec"),
    _rule("us_itin", 9, rb"9\d\d-\d\d-\d{4}", _us_itin, number=4, needs=b"-"),
    _rule("uk_nino", 6, rb"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]_\d\d_\d\d_\d\d_[A-D]", _uk_nino),
    _rule("uk_nhs", 10, rb"\d{3}_\d{3}_\d{4}", _uk_nhs, rb"\bnhs\b"),
    _rule("de_tax_id", 11, rb"\d\d_\d{3}_\d{3}_\d{3}", _de_tax_id, rb"steuer|id-?nr|tax|\btin\b|identifikationsnummer"),
    _rule("fr_nir", 13, rb"[12]_\d\d_(?:0[1-9]|1[0-2]|[2-9]\d)_(?:\d\d|2[AB])_\d{3}_\d{3}_\d\d", _fr_nir),
    _rule("es_dni", 7, rb"(?:\d\d\.?\d{3}\.?\d{3}|[XYZ][ -]?\d{7})[ -]?[A-HJ-NP-TV-Z]", _es_dni, number=3),
    _rule("it_fiscal_code", 0, rb"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", _it_fiscal),
    _rule(
        "in_aadhaar",
        12,
        rb"[2-9]\d{3}_\d{4}_\d{4}",
        verhoeff_valid,
        bare_words=rb"aadha?ar|uidai",
        number=4,
    ),
    _rule("br_cpf", 11, rb"\d{3}\.\d{3}\.\d{3}-\d\d|\d{11}", _br_cpf, bare_words=rb"cpf", number=3),
    _rule("pl_pesel", 11, rb"\d{11}", _pl_pesel, rb"pesel"),
    _rule("nl_bsn", 9, rb"\d{4}\.?\d\d\.?\d{3}|\d{3}_\d{3}_\d{3}", _nl_bsn, rb"\bbsn\b|burgerservice|sofi"),
    _rule("se_personal", 10, rb"(?:19|20)?\d{6}[-+]\d{4}", _se_personal, number=6, needs=b"-+"),
    _rule("se_personal", 10, rb"(?:19|20)?\d{10}", _se_personal, rb"personn"),
    _rule("fi_personal", 9, rb"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", _fi_personal, number=6),
    _rule("no_birth", 11, rb"\d{6} ?\d{5}", _no_birth, number=6),
    _rule("be_national", 11, rb"\d\d\.\d\d\.\d\d-\d{3}[.-]\d\d|\d{11}", _be_national, number=3),
    _rule("ch_insured", 13, rb"756\.?\d{4}\.?\d{4}\.?\d\d", _ch_insured, number=4),
    _rule("ca_sin", 9, rb"\d{3}_\d{3}_\d{3}", luhn_valid, rb"\bsin\b|social insurance|\bnas\b|assurance sociale"),
    _rule("au_tax_file", 9, rb"\d{3}_\d{3}_\d{3}", _au_tax_file, rb"\btfn\b|tax file"),
    _rule("cn_resident", 17, rb"[1-9]\d{5}(?:19|20)\d{9}[\dXx]", _cn_resident, number=17),
    _rule("kr_resident", 13, rb"\d{6}-[1-8]\d{6}", _kr_resident, number=7, needs=b"-"),
    _rule("mx_curp", 0, rb"[A-Z][AEIOUX][A-Z]{2}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d", _mx_curp),
    _rule("tr_identity", 11, rb"[1-9]\d{10}", _tr_identity, rb"\bt\.?c\b|kimlik|tckn"),
    _rule("ro_personal", 13, rb"[1-8]\d{12}", _ro_personal, rb"\bcnp\b|cod numeric"),
    _rule("cl_rut", 7, rb"\d\d?\.\d{3}\.\d{3}-[\dkK]", _cl_rut),
    _rule("cl_rut", 7, rb"\d{7,8}-?[\dkK]", _cl_rut, rb"\bru[tn]\b"),
    _rule("ar_cuit", 11, rb"2[0347]-\d{8}-\d", _ar_cuit),
    _rule("sg_nric", 7, rb"[STFG]\d{7}[A-Z]", _sg_nric),
    _rule("hk_identity", 6, rb"[A-Z]{1,2}\d{6}\([\dA]\)", _hk_identity),
    _rule("tw_identity", 9, rb"[A-Z][12]\d{8}", _tw_identity, "身分證|身份證|統一編號".encode() + rb"|\bid\b"),
    _rule("jp_individual", 12, rb"\d{4}_\d{4}_\d{4}", _jp_individual, "個人番号|マイナンバー".encode()),
    _rule("cz_birth", 10, rb"\d{6}/\d{4}", _cz_birth),
    _rule("ru_snils", 11, rb"\d{3}-\d{3}-\d{3}[ -]\d\d", _ru_snils),
    _rule("za_identity", 13, rb"\d{6}_\d{4}_\d{3}", _za_identity, rb"\bid\b|identity"),
    _rule("dk_cpr", 10, rb"\d{6}_\d{4}", _dk_cpr, rb"\bcpr"),
    _rule("pt_tax", 9, rb"[1-3]\d\d_\d{3}_\d{3}", _pt_tax, rb"\bnif\b|contribuinte"),
    _rule("ie_pps", 7, rb"\d{7}[A-W][A-IW]?", _ie_pps, rb"\bpps"),
)
