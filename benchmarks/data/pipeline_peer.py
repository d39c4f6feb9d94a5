"""The other side of `benchmarks/data/pipeline.py`: datatrove's steps on the same text, in one process.

    PYTHON pipeline_peer.py INPUT_FOLDER OUTPUT_FOLDER LID_MODEL

Runs in an environment with datatrove, ftfy and fasttext. LID_MODEL: fastText's file lid.176.
"""

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Repair, language, Gopher's and FineWeb's rules, personal data; then MinHash on what is left."""
    filters: Any = importlib.import_module("datatrove.pipeline.filters")
    formatters: Any = importlib.import_module("datatrove.pipeline.formatters")
    read: Any = importlib.import_module("datatrove.pipeline.readers").JsonlReader
    write: Any = importlib.import_module("datatrove.pipeline.writers").JsonlWriter
    run: Any = importlib.import_module("datatrove.executor").LocalPipelineExecutor
    lid: Any = importlib.import_module("datatrove.utils.lid")
    source, out, lid.FT176LID.MODEL_URL = sys.argv[1:]
    steps = [
        read(source),
        formatters.FTFYFormatter(),
        filters.LanguageFilter("en"),
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.FineWebQualityFilter(),
        formatters.PIIFormatter(),
        write(f"{out}/filtered", compression=None),
    ]
    run(steps, tasks=1, workers=1, logging_dir=f"{out}/log").run()
    sys.argv = ["minhash_peer.py", f"{out}/filtered", out]
    runpy.run_path(str(Path(__file__).with_name("minhash_peer.py")), run_name="__main__")


if __name__ == "__main__":
    main()
