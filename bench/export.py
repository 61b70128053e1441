"""Models of the zoo as files, by the runtime of each: the tables of docs/export.md, which this script writes there.

    python bench/export.py                              all rows; half an hour, most of it for AOTInductor's compiler
    python bench/export.py resnet20 gpt_small --to onnx some cells, the others stay
    python bench/export.py --to executorch              in an environment of its own, with the extra executorch
    python bench/export.py --folder files --rounds 0    times nothing; another call with --folder takes the files from there
    python bench/export.py --decoding                   the table of greedy decoding, by onnxruntime and by our eager model

A cell has the largest difference to the model, as a part of its largest output, at the example's sizes and others; the quickest
time over that of the eager model, turn and turn about; and the file's size. Threads are those of OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.deployment import export as exporting
from zoo.deployment.exported_decoding import Encoder, Step, greedy
from zoo.files import first_line
from zoo.generation import decoding
from zoo.gpt import gpt2

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "export.md"
TEXT = dict(vocab_size=8000)
IMAGES: dict[str, Any] = {
    "resnet20": (32, {}),
    "vgg11_bn": (32, dict(head="small", num_classes=10)),
    "googlenet": (64, dict(num_classes=10)),
    "inception_v3": (144, dict(num_classes=10, auxiliary=False)),
    "mobilenet_v1": (64, dict(num_classes=10)),
    "mobilenet_v2": (64, dict(num_classes=10)),
    "mobilenet_v3_small": (64, dict(num_classes=10)),
    "vae_small": (32, {}),
}
"""Pixels of the example, and arguments."""
TEXTS = ("bert_small", "gpt_small", "llama_small", "lstm_small", "gru_small", "bigru_small", "fasttext")
ROWS = (
    *IMAGES, "transformer_small, encoder", "transformer_small, step", "bert_small", "gpt_small", "gpt_small, step", "llama_small",
    "llama_small, step", "lstm_small", "gru_small", "bigru_small", "seq2seq_luong", "fasttext", "dcgan_28", "r3gan_28",
    "unet_small", "dit_small",
)  # fmt: skip
TARGETS = {"torch": "torch", "aot": "AOTInductor", "onnx": "ONNX", "executorch": "ExecuTorch", "torchscript": "TorchScript"}
OF_EXECUTORCH = ("resnet20", "transformer_small, encoder", "gpt_small, step")
"""Rows of this target; others are not asked of it."""
SIZES = ("height", "width", "length", "source_length", "target_length")
"""Fixed where a program holds for one size alone."""
WHY = {
    r"grid of 14 x 14|takes no other": "of one size by itself",
}
"""What errors mean: pattern -> words for the page."""


def made(row: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model of a row, with drawn weights, and what it is called with: 2 rows of 16 tokens, 2 images."""
    torch.manual_seed(0)
    name, _, part = row.partition(", ")
    tokens = torch.randint(4, 8000, (2, 16))
    if name in IMAGES:
        size, arguments = IMAGES[name]
        model: Any = zoo.create(name, **arguments)
        return settled(model), {"images": torch.randn(2, model.in_channels, size, size)}
    if name in TEXTS:
        model = zoo.create(name, **TEXT, **(dict(head="sequence", num_classes=3) if name == "bigru_small" else {})).eval()
        return (Step(model).eval(), Step(model).example(past=16)) if part else (model, {"tokens": tokens})
    if name == "transformer_small":
        model = zoo.create(name, **TEXT).eval()
        if part == "step":
            return Step(model).eval(), Step(model).example(past=16)
        return Encoder(model).eval(), {"source": tokens, "source_mask": torch.arange(16) < torch.tensor([[16], [11]])}
    if name == "seq2seq_luong":
        return zoo.create(name, **TEXT).eval(), {"source": tokens, "target": tokens}
    model = zoo.create(name)
    if isinstance(model, zoo.DiffusionModel):
        images = torch.randn(2, model.in_channels, 16, 16)
        for weight in model.parameters():  # fresh models put out zeros, which any file does
            if not weight.any():
                nn.init.normal_(weight, std=0.02)
        return model.eval(), {"images": images, "times": torch.tensor([3, 700])}
    return settled(model), {"latents": torch.randn(2, model.generator.latent_dim)}


def settled(model: nn.Module) -> nn.Module:
    """Batch norms with statistics of their own, not those of a fresh model, which change nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def written(model: nn.Module, example: Mapping[str, Tensor], path: Path, to: str) -> tuple[str, ...]:
    """Axes that had to be fixed: none, or images' and texts' sizes. Errors: of `zoo.export`."""
    known = path.with_suffix(".fixed")
    if path.exists():
        return tuple(known.read_text().split())
    sizes = tuple(axis for axis in SIZES if any(axis in exporting.axes_of(name) for name in example))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fixed in ((), sizes):
            try:
                zoo.export(model, example, path, to=to, fixed=fixed)
            except (RuntimeError, ValueError) as error:
                if fixed == sizes:
                    raise
                print(f"  {to}, all sizes: {first_line(error)}", file=sys.stderr)
            else:
                known.write_text(" ".join(fixed))
                return fixed
    raise AssertionError


def cell(row: str, to: str, folder: Path, rounds: int) -> str:
    """What the table says of a model in a format."""
    if to == "executorch" and row not in OF_EXECUTORCH:
        return "-"
    model, example = made(row)
    path = folder / f"{row.replace(', ', '-')}.{to}{exporting.ENDINGS[to]}"
    try:
        fixed = written(model, example, path, to)
    except (RuntimeError, ValueError) as error:
        said = first_line(error)
        print(f"  {to}: {said}", file=sys.stderr)
        return next((words for pattern, words in WHY.items() if re.search(pattern, said)), f"no: {said[:90]}")
    run = exporting.runner(path, to)
    program = exporting.Program(model, tuple(example))
    with torch.inference_mode():
        worst = max(error_of(program, run, sized) for sized in sizes_of(example, fixed, to))
        times = side_by_side(lambda: program(**example), lambda: run(example), rounds) if rounds else ()
    note = " (one size)" if fixed else ""
    ratio = f"{times[1] / times[0]:.2f}" if times else "-"
    return f"{worst:.0e}, {ratio}, {path.stat().st_size / 1e6:.1f} MB{note}"


def sizes_of(example: Mapping[str, Tensor], fixed: tuple[str, ...], to: str) -> Iterator[Mapping[str, Tensor]]:
    free = exporting.free_of(example, fixed)
    yield example
    yield from exporting.others(example, free, bounded=to == "executorch")


def error_of(program: nn.Module, run: Callable[..., list[Tensor]], inputs: Mapping[str, Tensor]) -> float:
    try:
        expected = program(**inputs)
    except ValueError:  # a size that the model does not take
        return 0.0
    return max(exporting.relative_error(b, a) for a, b in zip(expected.values(), run(inputs), strict=True))


def side_by_side(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Seconds, the quickest of each; the first call of each is not timed."""
    best = [float("inf"), float("inf")]
    for n in range(rounds + 1):
        for which, call in enumerate((ours, theirs)):
            begun = time.perf_counter()
            call()
            if n:
                best[which] = min(best[which], time.perf_counter() - begun)
    return best[0], best[1]


# ------------------------------------------------------------------------------------------------------------------- decoding

NEW = 64
GPTS = {"6 layers of 256": dict(vocab_size=8192, dim=256, heads=8, layers=6), "124 M": dict(vocab_size=50257)}


def decoded(folder: Path, rounds: int) -> Iterator[tuple[str, ...]]:
    """Rows: size, prompts, threads, seconds of the eager model and of onnxruntime, how many times as fast."""
    import onnxruntime

    for size, arguments in GPTS.items():
        torch.manual_seed(0)
        model = gpt2(**arguments, dropout=0.0).eval()
        step, path = Step(model).eval(), folder / f"step {size}.onnx"
        if not path.exists():
            zoo.export(step, step.example(past=16), path)
        for threads in (1, 2) if rounds else ():
            torch.set_num_threads(threads)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.force_spinning_stop", "1")  # after a run, or it slows torch's turns down
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for rows in (1,) if size == "124 M" else (1, 16):
                prompt = torch.randint(4, arguments["vocab_size"], (rows, 16))

                def eager(model=model, prompt=prompt, rows=rows):
                    with torch.inference_mode():
                        return decoding.greedy(model.start(capacity=16 + NEW), prompt, max_new_tokens=NEW)

                def theirs(session=session, prompt=prompt):
                    return greedy(session, prompt.numpy(), NEW)

                if eager().tolist() != theirs().tolist():
                    sys.exit(f"GPT of {size}: other tokens")
                a, b = side_by_side(eager, theirs, rounds)
                yield size, f"{rows}", f"{threads}", f"{a:.3f} s", f"{b:.3f} s", f"{a / b:.2f}"


# ----------------------------------------------------------------------------------------------------------------------- page


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: bench/export.py writes this -->", f"<!-- {name}: end -->"


def between(page: str, name: str) -> str:
    """Errors: `ValueError` without the marks."""
    first, last = marks(name)
    if page.count(first) != 1 or page.count(last) != 1:
        raise ValueError(f"{PAGE} must have one line {first} and one line {last}")
    return page.partition(first)[2].partition(last)[0]


def cells(page: str) -> dict[str, dict[str, str]]:
    """Those that the page has: row -> target -> what it says."""
    lines = [[x.strip() for x in line.split("|")[1:-1]] for line in between(page, "formats").splitlines() if line.startswith("|")]
    return {line[0].strip("`"): dict(zip(TARGETS, line[1:], strict=True)) for line in lines[2:]}


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def write(name: str, text: str) -> None:
    page = PAGE.read_text()
    first, last = marks(name)
    PAGE.write_text(page.replace(f"{first}{between(page, name)}{last}", f"{first}\n{text}\n{last}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all by default: " + ", ".join(ROWS))
    parser.add_argument("--to", nargs="*", choices=TARGETS, default=[to for to in TARGETS if to != "executorch"])
    parser.add_argument("--rounds", type=int, default=20, help="0: nothing is timed")
    parser.add_argument("--folder", type=Path, help="where files stay, and are taken from")
    parser.add_argument("--decoding", action="store_true")
    given = parser.parse_args()
    rows = [row for row in ROWS if not given.models or row in given.models or row.partition(",")[0] in given.models]
    if unknown := {*given.models} - {*ROWS} - {row.partition(",")[0] for row in ROWS}:
        parser.error(f"no such model: {', '.join(sorted(unknown))}; known are {'; '.join(ROWS)}")
    if "executorch" in given.to:  # whose threads are set before the first of its files is run, or it ends the process
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.decoding:
            found = [[*row] for row in decoded(folder, given.rounds)]
            if found:
                write("decoding", table(["GPT", "rows", "threads", "ours, eager", "onnxruntime", "times as fast"], found))
            return 0
        for row in rows:
            print(row, file=sys.stderr)
            new = {to: cell(row, to, folder, given.rounds) for to in given.to}
            known = cells(PAGE.read_text())  # each row as soon as it is there
            known[row] = known.get(row, {}) | new
            said = [[f"`{name}`", *(known.get(name, {}).get(to) or "not run" for to in TARGETS)] for name in ROWS]
            write("formats", table(["model", *TARGETS.values()], said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
