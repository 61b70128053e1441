"""Export the model of a run to a file that other programs run: ``python -m tasks.export runs/NAME --to onnx``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import commands
from tasks.commands import Command, checking_input
from tasks.options import Options, UserError, option
from tasks.saved import program_of, read_object

PROGRAM = "tasks.export"
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "aot": ".pt2", "torchscript": ".pt", "executorch": ".pte"}
LONGEST = 128
"""Tokens of a text, for ExecuTorch."""


@dataclass
class ExportOptions(Options):
    title = "the file"
    run: list[str] = option((), "folder of a run", many=True, path=True)
    to: str = option(
        "onnx", "what runs it: onnxruntime, torch.export.load, AOTInductor's loader, torch.jit.load, ExecuTorch", (*FORMATS,)
    )
    out: str = option("", "file to write (default: model.onnx and the like in the run's folder)", path=True)
    fixed_size: bool = option(False, "images of the run's size alone, which some models and runtimes need")


def export(given: dict[str, Any]) -> None:
    with checking_input():
        options = ExportOptions(**given)
        if len(options.run) != 1:
            raise UserError(f"give the folder of one run, such as runs/NAME, got {len(options.run)}")
        out = Path(options.out or Path(options.run[0]) / f"model{FORMATS[options.to]}")
        if out.suffix != FORMATS[options.to]:
            raise UserError(f"--out must end in {FORMATS[options.to]} for --to {options.to}, got {options.out}")
        require_free(out.with_suffix(".json"))
        try:
            about = write(options, out)
        except ModuleNotFoundError as error:
            raise UserError(str(error)) from error
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{options.run[0]}: {error}{way_out(options, str(error))}") from error
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, takes {', '.join(about['inputs'])}, gives {', '.join(about['outputs'])}")
    print(f"{out.with_suffix('.json')}: what a program needs to know beside it")


def way_out(options: ExportOptions, why: str) -> str:
    """Where `zoo.export` says that some sizes must be fixed: how a command does that."""
    if "fixed" not in why or options.fixed_size:
        return ""
    return "; --fixed_size fixes those of images, and of texts `zoo.export` does, called in Python"


def require_free(beside: Path) -> None:
    """Errors: `UserError` where a file that no export has left, such as a run's config.json, would be written over."""
    if beside.exists() and not {"format", "inputs", "outputs"} <= read_object(beside).keys():
        raise UserError(f"--out: {beside} would be written too, and is there, of something else: choose another name")


def write(options: ExportOptions, out: Path) -> dict[str, Any]:
    """The model's file, and beside it a JSON object of the same name. Errors: those of `zoo.export`, and `UserError`."""
    import warnings

    import torch

    import zoo
    from zoo.deployment.export import Program, inputs_of
    from zoo.deployment.exported_decoding import Encoder
    from zoo.files import write_bytes, write_json

    folder = Path(options.run[0])
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: the folder of a run is expected, such as runs/NAME")
    program = program_of(folder).removeprefix("tasks.")
    known = ("image_classification", "text_classification", "translation", "text_generation")
    if program not in known:
        of = f"a run of tasks.{program}" if program else "no run"
        raise UserError(f"{folder} is {of}: runs of {', '.join(known)} are exported")
    if options.fixed_size and program != "image_classification":
        raise UserError("--fixed_size is for runs of image_classification")
    model: Any = zoo.load(folder)
    longest = 8
    if options.to == "executorch":  # whose example has the longest texts that the file takes
        longest = min(LONGEST, getattr(getattr(model, "positions", None), "max_positions", LONGEST))
    config, tokens = model.config, torch.ones(2, longest, dtype=torch.long)
    about: dict[str, Any] = {"task": program, "model": config["model"]}
    fixed: tuple[str, ...] = ()
    if program == "image_classification":
        preprocess = model.preprocess
        about |= {"classes": config.get("classes"), "preprocess": preprocess.config()}
        example: dict[str, Any] = {"images": torch.randn(2, preprocess.channels, *[preprocess.image_size] * 2)}
        fixed = ("height", "width") if options.fixed_size else ()
    elif program == "text_classification":
        from tasks.text_models import load_reader

        about |= {"classes": config.get("classes"), "texts": config.get("texts")}
        example = {"tokens": tokens, "mask": tokens > 0}
        example |= {"types": torch.zeros_like(tokens)} if load_reader(folder).typed else {}
    elif program == "translation":
        if not hasattr(model, "decoder_norm"):
            raise UserError(f"{folder}: of {config['model']} there is no encoder to export, but of Transformers")
        model, about["part"] = Encoder(model), "encoder"
        example = {"source": tokens, "source_mask": tokens > 0}
    else:
        example = {"tokens": tokens}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        zoo.export(model, example, out, to=options.to, fixed=fixed)
    for warning in told:
        print(f"note: {warning.message}")
    with torch.no_grad():
        outputs = Program(model, tuple(inputs_of(model, example)))(**example)
    about |= {"inputs": [*example], "outputs": [*outputs], "fixed": [*fixed], "format": options.to}
    if options.to == "executorch":
        about["largest"] = {name: [*x.shape] for name, x in example.items()}
    if (folder / "tokenizer.json").is_file():
        beside = out.with_name(f"{out.stem}.tokenizer.json")
        write_bytes(beside, (folder / "tokenizer.json").read_bytes())
        about["tokenizer"] = beside.name
    write_json(out.with_suffix(".json"), about)
    return about


COMMANDS = {
    "export": Command(
        ExportOptions, "export the model of a run to a file that other programs run", export, "runs/digits --to onnx",
        "--run {}", "run",
    )
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(PROGRAM, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
