"""Formats numbers as text: a few digits and a unit."""

import math
import re
from collections.abc import Mapping

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def count(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{value:,.0f}"


def significant(value: float, digits: int = 4) -> str:
    """The value with this many significant digits; with an exponent only if it is very small or very large."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def size(num_bytes: float) -> str:
    """Bytes in decimal units."""
    return _scaled(num_bytes, ("bytes", "kB", "MB", "GB", "TB", "PB"))


def flops(amount: float) -> str:
    """Floating-point operations, with a decimal prefix."""
    return _scaled(amount, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def share(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as text: in s, in min and s, or in h and min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def money(amount: float, currency: str) -> str:
    """An amount of money; below 1 with six decimals, since stages cost fractions of a cent."""
    return f"{amount:,.2f} {currency}" if amount >= 1 else f"{amount:.6f} {currency}"


def moment(created: str) -> str:
    """A manifest's UTC time, without the offset."""
    return created.removesuffix("+00:00").replace("T", " ")


def interval(mean: float, low: float, high: float) -> str:
    """A value with its interval."""
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def difference(mean: float, low: float, high: float) -> str:
    """A difference with its interval, signed."""
    return f"{mean:+z.3f} [{low:+z.3f}, {high:+z.3f}]"


def counts(values: Mapping[str, int]) -> str:
    """`name 3, other 1`."""
    return ", ".join(f"{name} {count(value)}" for name, value in values.items())


def printable(text: str) -> str:
    """The text with characters that HTML or UTF-8 cannot represent replaced; models and file names may contain them."""
    return UNPRINTABLE.sub("\ufffd", text)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:,.0f} {units[0]}" if power == 0 else f"{value:#.3g}".rstrip(".") + f" {units[power]}"
