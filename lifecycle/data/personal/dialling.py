"""Whether digits can be a phone number at all: one regular expression for each country and each region, of all numbers
in its plan and of what is dialled before them.

A text full of digits asks this thousands of times, mostly for numbers that are none; libphonenumber takes 10 us for a
no, this 0.5. What must hold: what libphonenumber calls valid passes here.
"""

import re
from collections.abc import Iterator
from functools import cache

import phonenumbers
from phonenumbers import PhoneMetadata

_KINDS = (
    "fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "personal_number", "voip", "pager", "uan",
    "voicemail",
)  # fmt: skip
_LONGEST_CODE = 3  # digits of a country's code
_ANY, _NO_PREFIX = r"\d+", "(?!)"


def may_be_valid(dialled: str, region: str | None) -> bool:
    """Whether digits that are dialled in a region, or behind a `+` anywhere, can be a valid number."""
    if dialled.startswith("+"):
        return _may_be_abroad(dialled[1:])
    assert region is not None  # where digits alone mean something
    leads_abroad, national = _in_region(region)
    abroad = leads_abroad.match(dialled)
    return national.fullmatch(dialled) is not None or (abroad is not None and _may_be_abroad(dialled[abroad.end() :]))


def _may_be_abroad(digits: str) -> bool:
    for size in range(1, _LONGEST_CODE + 1):
        if (country := _in_country(digits[:size])) is not None:
            return country.fullmatch(digits, size) is not None
    return False


@cache
def _in_country(code: str) -> re.Pattern[str] | None:
    """What follows a country's code; None if there is no such country."""
    if not code or code[0] == "0" or int(code) not in phonenumbers.COUNTRY_CODE_TO_REGION_CODE:
        return None
    return re.compile(_with_prefixes(_main_plan(int(code)), int(code)))


@cache
def _in_region(region: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What leads out of a region's country, and what is dialled inside, with the country's code or without it."""
    plan = PhoneMetadata.metadata_for_region(region)
    assert plan is not None and plan.country_code is not None
    inside = rf"(?:{plan.country_code})?(?:{_with_prefixes(plan, plan.country_code)})"
    return re.compile(plan.international_prefix or _NO_PREFIX), re.compile(inside)


def _with_prefixes(plan: PhoneMetadata, country: int) -> str:
    """A country's numbers behind the prefixes of a plan, which are taken away twice at most. A prefix that stands for
    other digits lets everything pass."""
    if plan.national_prefix_transform_rule:
        return _ANY
    prefix = f"(?:{plan.national_prefix_for_parsing or _NO_PREFIX}){{0,2}}"
    return f"{prefix}(?:{'|'.join(dict.fromkeys(_numbers(country)))})"


def _numbers(country: int) -> Iterator[str]:
    """The forms of all numbers of the regions that have a country's code."""
    for region in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[country]:
        plan = PhoneMetadata.metadata_for_region_or_calling_code(country, region)
        assert plan is not None
        for kind in _KINDS:
            own = getattr(plan, kind)
            if own is not None and own.national_number_pattern:
                yield own.national_number_pattern


def _main_plan(country: int) -> PhoneMetadata:
    main = phonenumbers.COUNTRY_CODE_TO_REGION_CODE[country][0]
    plan = PhoneMetadata.metadata_for_region_or_calling_code(country, main)
    assert plan is not None
    return plan
