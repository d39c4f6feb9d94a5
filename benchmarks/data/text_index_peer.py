"""The other side of `text_index.py`: infini-gram makes an index of `FOLDER/peer` and looks up `FOLDER/queries.json`."""

import importlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
peer = folder / "peer"
command = [sys.executable, "-m", "infini_gram.indexing", "--data_dir", str(peer), "--save_dir", str(peer), "--mem", "8"]
command += ["--cpus", "2", "--ulimit", "1024"]
before = resource.getrusage(resource.RUSAGE_CHILDREN)
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
after = resource.getrusage(resource.RUSAGE_CHILDREN)
spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
size = sum(path.stat().st_size for path in peer.iterdir() if path.is_file())
print(f"made in {spent:.1f} CPU-seconds, {after.ru_maxrss / 1e6:.2f} GB of memory; {size / 1e6:,.0f} MB")
infini_gram = importlib.import_module("infini_gram.engine")
engine = infini_gram.InfiniGramEngine(
    index_dir=str(peer), eos_token_id=0xFFFE, vocab_size=0xFFFF, version=4, token_dtype="u16"
)
times, num = [], 0
for query in json.loads((folder / "queries.json").read_text()):
    began = time.process_time()
    result = engine.search_docs(input_ids=query["ids"], maxnum=5, max_disp_len=200)
    times.append((time.process_time() - began) * 1000)
    num += result["cnt"] > 0
times.sort()
print(f"passages alone: median {times[len(times) // 2]:.2f} ms, longest {times[-1]:.2f}; found {num} of {len(times)}")
