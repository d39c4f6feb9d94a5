"""The other side of `benchmarks/data/minhash.py`: datatrove's MinHash, its four stages in one process.

    PYTHON minhash_peer.py INPUT_FOLDER OUTPUT_FOLDER [SEED]

Runs in an environment with datatrove. Reads JSON Lines and writes the documents that are kept as JSON Lines.
"""

import importlib
import sys
from typing import Any

LANGUAGE = "eng"


def main() -> None:
    """Signatures, buckets, clusters, filter."""
    made: Any = importlib.import_module("datatrove.pipeline.dedup.minhash")
    read: Any = importlib.import_module("datatrove.pipeline.readers").JsonlReader
    write: Any = importlib.import_module("datatrove.pipeline.writers").JsonlWriter
    run: Any = importlib.import_module("datatrove.executor").LocalPipelineExecutor
    source, out, *seed = sys.argv[1:]
    config = made.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, seed=int(seed[0]) if seed else 1)
    parts = {name: f"{out}/{name}" for name in ("signatures", "buckets", "remove", "kept")}
    stages: list[list[Any]] = [
        [read(source), made.MinhashDedupSignature(parts["signatures"], config, language=LANGUAGE)],
        [made.MinhashDedupBuckets(parts["signatures"], parts["buckets"], config=config)],
        [made.MinhashDedupCluster(parts["buckets"], parts["remove"], config=config)],
        [read(source), made.MinhashDedupFilter(parts["remove"]), write(parts["kept"], compression=None)],
    ]
    for number, stage in enumerate(stages):
        tasks = config.num_buckets if number == 1 else 1
        run(stage, tasks=tasks, workers=1, logging_dir=f"{out}/log{number}").run()


if __name__ == "__main__":
    main()
