"""Stage `bundle`: weights, config, tokenizer and chat template in the layout that other tools open."""

import json
import shutil
from pathlib import Path

from lifecycle.core.artifact import MANIFEST, write_text
from lifecycle.core.progress import Progress
from lifecycle.model.config import num_params
from lifecycle.model.weights import save_weights
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.stages.training import trained_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    folder = inputs["tokenizer"].path
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST:
            shutil.copyfile(file, out / file.name)
    tokenizer = load_tokenizer(folder)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    save_weights(config.model, trained_params(inputs["prefer"], config.model), out, **ids)
    stops = ChatTemplate.load(folder, tokenizer).stop_ids
    write_text(out / "generation_config.json", json.dumps({**ids, "eos_token_id": stops}, indent=2) + "\n")
    progress.note("bundle written")
    return Outcome({"parameters": num_params(config.model)})
