"""The compiler's result for a program: the facts that are cached on disk and from which everything else is derived."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compilation:
    """A compiled program; for a program that does not fit, only the peak is known. Bytes are per device."""

    module: str | None  # the compiled module's text; None: the program does not fit
    peak_bytes: int  # the largest sum of buffers that are live at once, arguments included
    argument_bytes: int
    code_bytes: int
    host_bytes: int
    compile_s: float
