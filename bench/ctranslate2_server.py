"""Translates or writes with CTranslate2 in a process of its own, because two OpenMP runtimes in one process slow each other down.

``python bench/ctranslate2_server.py FOLDER WORKERS THREADS ROWS TOKENS TYPE`` reads a number of beams from each line of standard
input and answers by one line of JSON: what the model in FOLDER makes of every row of ROWS, a file of JSON, TOKENS tokens at most,
with weights of TYPE. A decoder-only model goes on from the rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ctranslate2

folder, workers, threads, file, tokens, kind = sys.argv[1:]
rows = json.loads(Path(file).read_text())
options = dict(compute_type=kind, inter_threads=int(workers), intra_threads=int(threads))
share = len(rows) // int(workers)
translates = not (Path(folder) / "vocabulary.json").exists()
model = (ctranslate2.Translator if translates else ctranslate2.Generator)(folder, **options)


def answer(beams: int) -> list[list[str]]:
    if translates:
        found = model.translate_batch(rows, beam_size=beams, max_decoding_length=int(tokens), max_batch_size=share)
        return [row.hypotheses[0] for row in found]
    lengths = dict(max_length=int(tokens), include_prompt_in_result=False)
    return [row.sequences[0] for row in model.generate_batch(rows, beam_size=beams, max_batch_size=share, **lengths)]


for line in sys.stdin:
    print(json.dumps(answer(int(line))), flush=True)
