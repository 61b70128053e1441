"""Translates with CTranslate2 in a process of its own, because two OpenMP runtimes in one process slow each other down.

``python bench/ctranslate2_server.py FOLDER WORKERS THREADS SENTENCES`` reads a number of beams from each line of standard input
and answers by one line of JSON, the tokens of every sentence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ctranslate2

folder, workers, threads, file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
sentences = json.loads(Path(file).read_text())
options = dict(compute_type="float32", inter_threads=workers, intra_threads=threads)
translator = ctranslate2.Translator(folder, **options)
for line in sys.stdin:
    share = len(sentences) // workers
    found = translator.translate_batch(sentences, beam_size=int(line), max_decoding_length=32, max_batch_size=share)
    print(json.dumps([row.hypotheses[0] for row in found]), flush=True)
