"""The other side of `pages.py`: trafilatura's texts of the pages that standard input names, a JSON line each, and last
the CPU-seconds that they took. `pages_peer.py [OPTION ...]`: options of `trafilatura.extract` to set."""

import importlib
import json
import sys
import time
from pathlib import Path

extract = importlib.import_module("trafilatura").extract
options = dict.fromkeys(sys.argv[1:], True)
pages = [Path(line.rstrip("\n")).read_text(encoding="utf-8", errors="replace") for line in sys.stdin]
extract(pages[0], **options)
spent = time.process_time()
texts = [extract(page, **options) or "" for page in pages]
spent = time.process_time() - spent
for text in texts:
    print(json.dumps(text))
print(json.dumps(spent))
