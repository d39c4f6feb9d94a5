"""Which digits are a valid phone number, and which one: the rules of libphonenumber's `parse`,
`is_valid_number` and `is_possible_number`.

A text full of digits asks this thousands of times. libphonenumber takes 30 us for a yes and 10 for a no; here its plans
are compiled, one regular expression for all numbers of a region and one for what is dialled in several, and it is 3 us
and 0.5. What must hold: the answer is libphonenumber's.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata, PhoneNumberDesc

_KINDS = (
    "premium_rate", "toll_free", "shared_cost", "voip", "personal_number", "pager", "uan", "voicemail", "fixed_line",
    "mobile",
)  # fmt: skip
_LONGEST_CODE = 3  # digits of a country's code
_LEAST, _MOST = 2, 17  # digits behind it
_NEVER = "(?!)"


def valid_number(dialled: str, *groups: tuple[str, ...]) -> str | None:
    """The number that digits are behind a `+`, or else in the first region of some groups in which they are a valid
    one, as E.164 spells it. For a no each group takes one look, which is compiled once, in 20 ms for 28 regions."""
    if dialled.startswith("+"):
        return _valid(_behind_plus(dialled[1:], is_valid=True))
    for regions in groups:
        if _anywhere(regions).fullmatch(dialled):
            for region in regions:
                may_be = _anywhere((region,)).fullmatch(dialled)
                if may_be and (number := _valid(_in_region(dialled, region, is_valid=True))):
                    return number
    return None


def possible_number(dialled: str, region: str) -> str | None:
    """The number that digits are behind a `+`, or else in a region, if it is as long as some of its country's."""
    is_abroad = dialled.startswith("+")
    read = _behind_plus(dialled[1:]) if is_abroad else _in_region(dialled, region)
    return (
        None if read is None or not _main_plan(read.code).has_length(read.national) else f"+{read.code}{read.national}"
    )


class _Number(NamedTuple):
    """A country's code, and the digits behind it."""

    code: int
    national: str


def _in_region(dialled: str, region: str, is_valid: bool = False) -> _Number | None:
    """The number that digits are where they are dialled in a region. `is_valid`: None may stand for what is not."""
    own = _plan(0, region)
    abroad = own.leads_abroad.match(dialled)
    if abroad is not None and dialled[abroad.end() : abroad.end() + 1] != "0":  # as no country's code begins
        return _behind_plus(dialled[abroad.end() :], is_valid)
    code, plan, national = str(own.code), own, dialled
    if dialled.startswith(code):
        inside = own.without_prefix(dialled[len(code) :])
        if (not own.is_like(dialled) and own.is_like(inside)) or own.is_too_long(dialled):
            plan, national = _main_plan(own.code), inside
    return _number(plan, national)


def _behind_plus(digits: str, is_valid: bool = False) -> _Number | None:
    """The number that digits are behind what leads out of a country. `is_valid`: None may stand for what is not."""
    if len(digits) <= _LEAST:
        return None
    for size in range(1, _LONGEST_CODE + 1):
        if (plan := _plan_of_code(digits[:size])) is not None:
            is_none = is_valid and not _behind_code(plan.code).fullmatch(digits, size)
            return None if is_none else _number(plan, digits[size:])
    return None


def _number(plan: "_Plan", national: str) -> _Number | None:
    """The number of a country that digits are, with the prefix of a plan or without it."""
    shorter = plan.without_prefix(national) if len(national) >= _LEAST else national
    if plan.is_possible(shorter):
        national = shorter
    return _Number(plan.code, national) if _LEAST <= len(national) <= _MOST else None


def _valid(number: _Number | None) -> str | None:
    return f"+{number.code}{number.national}" if number is not None and _is_valid(*number) else None


def _is_valid(code: int, national: str) -> bool:
    """Whether a country has a number. Its regions are asked in order; beginnings tell of some whose a number is."""
    if not _in_country(code).fullmatch(national):
        return False
    regions = COUNTRY_CODE_TO_REGION_CODE[code]
    for plan in (_plan(code, region) for region in regions):
        is_valid = plan.valid.match(national) is not None
        if len(regions) == 1 or plan.begins is None:
            if is_valid:
                return True
        elif plan.begins.match(national):
            return is_valid
    return False


class _Plan(NamedTuple):
    """The numbers of a region."""

    code: int  # its country's
    leads_abroad: re.Pattern[str]
    prefix: re.Pattern[str]  # that is dialled before numbers inside the country
    rule: str | None  # what the prefix stands for, if it is taken away for other digits
    like: re.Pattern[str]
    lengths: tuple[int, ...]
    local_lengths: tuple[int, ...]  # without an area's code
    begins: re.Pattern[str] | None
    valid: re.Pattern[str]

    def is_like(self, national: str) -> bool:
        return self.like.fullmatch(national) is not None

    def is_too_long(self, national: str) -> bool:
        return len(national) not in self.local_lengths and len(national) > self.lengths[-1]

    def has_length(self, national: str) -> bool:
        return len(national) not in self.local_lengths and len(national) in self.lengths

    def is_possible(self, national: str) -> bool:
        """Whether a number is as long as some, or longer than all."""
        return self.has_length(national) or self.is_too_long(national)

    def without_prefix(self, national: str) -> str:
        """A number without its prefix, if what is left looks no less like a number."""
        found = self.prefix.match(national)
        if found is None:
            return national
        is_replaced = self.rule is not None and found[self.prefix.groups] is not None
        rest = self.prefix.sub(self.rule, national, count=1) if is_replaced and self.rule else national[found.end() :]
        return rest if self.is_like(rest) or not self.is_like(national) else national


@cache
def _plan(code: int, region: str) -> _Plan:
    """The plan of a region, or of a country's code that is no region's."""
    plan = _metadata(code, region)
    general = plan.general_desc
    assert general is not None and plan.country_code is not None
    return _Plan(
        plan.country_code,
        re.compile(plan.international_prefix or _NEVER),
        re.compile(plan.national_prefix_for_parsing or _NEVER),
        plan.national_prefix_transform_rule or None,
        re.compile(general.national_number_pattern or _NEVER),
        tuple(general.possible_length),
        tuple(general.possible_length_local_only),
        None if plan.leading_digits is None else re.compile(plan.leading_digits),
        re.compile(_valid_form(plan)),
    )


def _metadata(code: int, region: str) -> PhoneMetadata:
    plan = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
    assert plan is not None
    return plan


def _valid_form(plan: PhoneMetadata) -> str:
    """All numbers of a plan, whole: of a kind, and like the plan's numbers in general."""
    kinds = (_form(own) for kind in _KINDS if (own := getattr(plan, kind)) is not None)
    assert plan.general_desc is not None
    return f"(?={_form(plan.general_desc)})(?:{'|'.join(dict.fromkeys(kinds))})"


def _form(kind: PhoneNumberDesc) -> str:
    """The numbers of a kind, whole."""
    lengths = "|".join(rf"\d{{{size}}}" for size in kind.possible_length if size > 0)
    if kind.possible_length and not lengths:
        return _NEVER
    own = rf"(?:{kind.national_number_pattern or _NEVER})\Z"
    return rf"(?=(?:{lengths})\Z){own}" if lengths else own


def _main_plan(code: int) -> _Plan:
    return _plan(code, COUNTRY_CODE_TO_REGION_CODE[code][0])


@cache
def _plan_of_code(code: str) -> _Plan | None:
    """The plan of a country's code; None if there is no such country."""
    is_code = code != "" and code[0] != "0" and int(code) in COUNTRY_CODE_TO_REGION_CODE
    return _main_plan(int(code)) if is_code else None


@cache
def _in_country(code: int) -> re.Pattern[str]:
    """All numbers of the regions that have a country's code, and some more: a no takes this one look."""
    return re.compile("|".join(dict.fromkeys(_numbers(code))))


@cache
def _anywhere(regions: tuple[str, ...]) -> re.Pattern[str]:
    """All that is dialled in one of some regions, and more: behind what leads abroad anything may follow, and behind a
    prefix that stands for other digits."""
    return re.compile("|".join(dict.fromkeys(form for region in regions for form in _dialled(region))))


@cache
def _behind_code(code: int) -> re.Pattern[str]:
    """What can follow a country's code, and more."""
    plan = _metadata(code, COUNTRY_CODE_TO_REGION_CODE[code][0])
    numbers = "|".join(dict.fromkeys(_numbers(code)))
    return re.compile(r"\d+" if plan.national_prefix_transform_rule else f"{_prefixes(plan)}(?:{numbers})")


def _dialled(region: str) -> Iterator[str]:
    plan = _metadata(0, region)
    assert plan.country_code is not None
    yield rf"(?:{plan.international_prefix or _NEVER})\d+"
    if plan.national_prefix_transform_rule:
        yield r"\d+"
    yield f"(?:{plan.country_code})?{_prefixes(plan)}(?:{'|'.join(dict.fromkeys(_numbers(plan.country_code)))})"


def _prefixes(plan: PhoneMetadata) -> str:
    return f"(?:{plan.national_prefix_for_parsing or _NEVER}){{0,2}}"  # taken away twice at most


def _numbers(code: int) -> Iterator[str]:
    for plan in (_metadata(code, region) for region in COUNTRY_CODE_TO_REGION_CODE[code]):
        for kind in (own for name in _KINDS if (own := getattr(plan, name)) is not None):
            if kind.national_number_pattern:
                yield f"(?:{kind.national_number_pattern})"
