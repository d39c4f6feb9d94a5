"""The compiler's result for a program: the facts that everything else is derived from, and that are cached on disk."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compilation:
    """A compiled program, or how much memory one that does not fit would need. Bytes are per device; of what does not
    fit only the peak is known."""

    module: str | None  # the compiled module's text; None: the program does not fit
    peak_bytes: int  # the largest sum of buffers that live at once, arguments included
    argument_bytes: int
    code_bytes: int
    host_bytes: int
    compile_s: float
