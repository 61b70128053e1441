"""A run's folder as one page, index.html, which opens without a server and can be sent: ``python -m tasks.report runs/a``."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from tasks.commands import exit_code
from tasks.options import UserError, owner
from tasks.page import description_list, document, escape, html_table, image, words
from tasks.saved import flattened, program_of, read_object

PAGE, EXAMPLES = "index.html", "examples.json"
USAGE = "python -m tasks.report RUN [RUN ...]"
FIRST = ("samples", "curves", "confusion", "mistakes")
"""Pictures that come first, in this order."""
PNG = b"\x89PNG\r\n\x1a\n"


def write(folder: Path, kind: type | None = None) -> Path:
    """Make the page of the files that are there, whatever is missing or damaged; the same files give the same page.

    kind: the class of the run's options, which groups them and knows their defaults (default: that of the program that made it).
    """
    from zoo.files import write_bytes

    folder = Path(folder)
    options, config, summary = (read_object(folder / f"{name}.json") for name in ("options", "config", "summary"))
    rows, about = read_rows(folder / "metrics.jsonl"), options.pop("about", {})
    name = folder.resolve().name
    sections = {
        "Result": description_list(sorted(summary.items(), key=lambda item: not item[0].startswith("test_"))),
        "Pictures": pictures(folder),
        "Examples": html_table(read_examples(folder / EXAMPLES)),
        "Epochs": html_table(rows, lambda row: "epoch" in row and row["epoch"] == summary.get("best_epoch")),
        "Options": options_section(options, kind or kind_of(folder)),
        "Model": description_list(flattened(config)),
        "Data and versions": description_list(flattened(about if isinstance(about, dict) else {})),
    }
    page = document(name, "; ".join(facts(options, config, summary, rows)), sections)
    write_bytes(folder / PAGE, page.encode())
    return folder / PAGE


def facts(options: Mapping[str, Any], config: Mapping[str, Any], summary: Mapping[str, Any], rows: Sequence[Any]) -> list[str]:
    """What a reader asks first: which model, how far, how good."""
    said = [words(config["model"])] if "model" in config else []
    if "parameters" in summary:
        said.append(f"{words(summary['parameters'])} parameters")
    planned = f" of {words(options['epochs'])}" if "epochs" in options else ""
    said.append(f"{len(rows)}{planned} epochs" + ("" if summary else ", not finished"))
    best = [f"best {key.removeprefix('best_')} {words(value)}" for key, value in summary.items() if key.startswith("best_valid_")]
    return said + [f"{text} after epoch {words(summary.get('best_epoch'))}" for text in best]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, but for lines that are none."""
    return [row for line in read_text(path).splitlines() if isinstance(row := read_json(line), dict)]


def read_examples(path: Path) -> list[dict[str, Any]]:
    found = read_json(read_text(path))
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def write_examples(folder: Path, examples: Sequence[Mapping[str, Any]]) -> None:
    """Keep examples for the page, such as {"source": ..., "translation": ..., "expected": ...}: a column for each key."""
    from zoo.files import write_bytes

    write_bytes(folder / EXAMPLES, (json.dumps(list(examples), indent=2, ensure_ascii=False) + "\n").encode(errors="replace"))


def pictures(folder: Path) -> str:
    """Every PNG file of the folder, within the page."""
    order = {name: n for n, name in enumerate(FIRST)}
    found = []
    for path in sorted(folder.glob("*.png"), key=lambda p: (order.get(p.stem, len(order)), p.name)):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        found += [image(path.name, content)] if content.startswith(PNG) else []
    return "\n".join(found)


def options_section(options: Mapping[str, Any], kind: type) -> str:
    """Options that are not at their defaults, then the others in their groups, then what else options.json holds."""
    known = {spec.name: owner(kind, spec.name).title for spec in fields(kind) if spec.name in options}
    changed: list[dict[str, Any]] = []
    groups: dict[str, dict[str, Any]] = {}
    for name, title in known.items():
        usual = default(kind, options, name)
        if usual != options[name] and name != "name":
            changed.append({"option": name, "value": options[name], "default": usual})
        else:
            groups.setdefault(f"{title}, at their defaults", {})[name] = options[name]
    groups["also kept"] = {name: value for name, value in options.items() if name not in known}
    folded = [
        f"<details>\n<summary>{escape(title)}</summary>\n{description_list(group.items())}\n</details>"
        for title, group in groups.items()
        if group
    ]
    return "\n".join([html_table(changed), *folded]).strip()


def default(kind: type, options: Mapping[str, Any], name: str) -> Any:
    """What the option would be beside the others, had it not been given."""
    names = {spec.name for spec in fields(kind)} - {name}
    try:
        return getattr(kind(**{key: value for key, value in options.items() if key in names}), name)
    except (UserError, TypeError, ValueError):  # options of another version
        return getattr(kind, name, None)


def kind_of(folder: Path) -> type:
    """The options of the program that made the run; those of image classification where that is not known."""
    from tasks import image_classification

    made = program_of(folder)
    try:
        return importlib.import_module(made).TrainOptions if made.startswith("tasks.") else image_classification.TrainOptions
    except (ImportError, AttributeError):
        return image_classification.TrainOptions


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(partial(write_all, sys.argv[1:] if argv is None else argv))


def write_all(words: Sequence[str]) -> None:
    """Errors: `UserError`, before any page is written, unless each word is the folder of a run."""
    if {"-h", "--help"}.intersection(words):
        print(f"usage: {USAGE}\n\nwrite RUN/{PAGE}, a run on one page, for each run, finished or not")
        return
    if not words:
        raise UserError(f"the folder of a run is needed: {USAGE}")
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word} is unknown, there are no options: {USAGE}")
        if not any((Path(word) / name).is_file() for name in ("options.json", "metrics.jsonl", "summary.json")):
            raise UserError(f"{word} is no run's folder: it has no options.json, metrics.jsonl or summary.json")
    for word in words:
        print(write(Path(word)))


if __name__ == "__main__":
    sys.exit(main())
