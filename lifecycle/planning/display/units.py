"""Formats numbers with decimal units: a GB is 10^9 bytes."""


def gigabytes(size: float) -> str:
    """Bytes in the unit that fits them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if abs(size) >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size / 1e3:,.2f} kB"


def flops(number: float) -> str:
    """FLOPs in the unit that fits them."""
    for unit, factor in (("T", 1e12), ("G", 1e9)):
        if number >= factor:
            return f"{number / factor:,.2f} {unit}FLOP"
    return f"{number / 1e6:,.2f} MFLOP"


def milliseconds(seconds: float) -> str:
    """Seconds as ms, whatever their size: steps are compared."""
    return f"{seconds * 1e3:,.2f} ms"
