"""Writes what pages tell about the code, and their tables of speed: `python docs/pages.py`; `--check` names old pages.

Lines between a mark and `<!-- end -->` are written, all others by hand:

    <!-- proven: layers/test_attention.py -->          the contracts of files of tests, with their twins and what they claim
    <!-- guarded: layers.attention layers.backends --> the bugs of the museum that are put into these files
    <!-- parts: resnet18 depth=2 size=224 -->          the modules of a model as a tree; for images of so many pixels. With
                                                       `part=generator` of this part. All other options are the model's
    <!-- members: resnet -->                           the names of a family, their parameters and weight maps
    <!-- features: vgg resnet -->                      a row for each family: what its members are and do
    <!-- speed: transformer -->                        a table of bench/tables.toml, or `earlier`: what none of them shows
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / room) for room in ("", "tests/shared", "tests/museum")]

import torch
from catalogue import EXHIBITS, link
from exhibit import module, plain

import zoo
from layers.testing.contract import Contract
from zoo.autoencoder import VAE
from zoo.gan import GAN
from zoo.model import without_values
from zoo.pretrained.huggingface import class_of
from zoo.summaries import Row, ancestors, count

_spec = importlib.util.spec_from_file_location("speeds", ROOT / "bench" / "table.py")
assert _spec is not None
assert _spec.loader is not None
speeds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(speeds)

TABLES = [ROOT / name for name in ("bench/RESULTS.md", "docs/models.md", "docs/performance.md", "docs/quantization.md")]
PAGES = [*sorted([*ROOT.glob("docs/blocks/*.md"), *ROOT.glob("docs/models/*.md")]), *TABLES]
MARKED = re.compile(r"^(<!-- (proven|guarded|parts|members|speed|features): ([^>]+) -->\n).*?^(<!-- end -->)$", re.M | re.S)
TOKENS = 32_000
"""Of models that have no vocabulary of their own."""


def written(text: str) -> str:
    """The page with what stands between its marks renewed."""
    return MARKED.sub(lambda found: found[1] + "\n" + "\n".join(WRITERS[found[2]](*found[3].split())) + "\n\n" + found[4], text)


def proven(*paths: str) -> Iterator[str]:
    files = " and ".join(f"`tests/{path}`" for path in paths)
    rows = []
    for path in paths:
        found = {id(x): (name, x) for name, x in vars(module(path)).items() if isinstance(x, Contract)}
        for name, contract in found.values():
            twins, claims = [twin.name for twin in contract.twins], [claim.name for claim in contract.holds]
            rows.append(f"| `{name}` | {', '.join(twins)} | {', '.join(map(words, claims))} |")
    if not rows:
        yield f"Tests in {files}; contracts of what uses it are on other pages."
        return
    yield f"Contracts in {files}, which claim this beside what [every contract](../check-your-block.md) promises:\n"
    yield from ["| contract | equal to | claims |", "| --- | --- | --- |", *rows]


def words(name: str) -> str:
    return name.replace("_", " ")


def guarded(*files: str) -> Iterator[str]:
    found = [exhibit for exhibit in EXHIBITS if plain(exhibit.function).__module__ in files]
    if not found:
        others = "; those of its blocks are on their pages" if files[0].startswith("zoo.") else ""
        yield f"The [museum of bugs](../museum.md) puts none into this file{others}."
        return
    yield f"The [museum of bugs](../museum.md) puts {len(found)} of them into this code; the tests find each:\n"
    for exhibit in found:
        threads = "cf. " * exhibit.cf + ", ".join(map(link, exhibit.seen))
        yield f"- {exhibit.name}, `{plain(exhibit.function).__qualname__}`: {exhibit.story} ({threads})"


def parts(name: str, *options: str) -> Iterator[str]:
    given = dict(option.split("=") for option in options)
    depth, size = int(given.pop("depth", 2)), int(given.pop("size", 32))
    part = given.pop("part", "")
    whole = on_meta(name, **{key: int(value) if value.isdigit() else value for key, value in given.items()})
    with torch.device("meta"):
        inputs = inputs_of(whole, size)
        if part == "discriminator":
            inputs = (whole(*inputs),)
        model = whole.get_submodule(part)
        rows = zoo.summary(model, *inputs, depth=depth)
    children: dict[str, list[Row]] = {}
    for row in rows[1:]:
        above = [name for name in ancestors(row.name) if name in {r.name for r in rows}]
        children.setdefault(above[-1], []).append(row)
    shown = [(part or name, rows[0].kind, rows[0].shape, rows[0].parameters), *branches(children, "", "")]
    table = [("", "class", "output", "parameters")]
    table += [(name, kind, sizes(shape), f"{parameters:,}") for name, kind, shape, parameters in shown]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    yield "```text"
    for row in table:
        yield "  ".join(f"{x:{side}{width}}" for x, side, width in zip(row, "<<<>", widths, strict=True)).rstrip()
    yield "```"
    used = {type(m).__module__ for m in model.modules()}
    pages = [page for page in PAGES if page.parent.name == "blocks" and used & files_of(page)]
    if pages:
        yield f"\nIts blocks: {', '.join(f'[{words(page.stem)}](../blocks/{page.name})' for page in pages)}."


def branches(children: dict[str, list[Row]], above: str, indent: str) -> Iterator[tuple[str, str, str, int]]:
    """Lines of a tree; those of one row of modules that are alike, parts and all, become one."""
    rows = children.get(above, [])
    runs: dict[object, list[Row]] = {}
    for row in rows:
        stem, _, number = row.name.rpartition(".")
        runs.setdefault((stem if number.isdigit() else row.name, look(children, row)), []).append(row)
    for run in runs.values():
        first, last = run[0], run is [*runs.values()][-1]
        name = first.name.removeprefix(f"{above}." if above else "")
        numbers = [row.name.rpartition(".")[2] for row in run[1:]]
        if numbers and int(numbers[-1]) - int(name.rpartition(".")[2]) == len(numbers):
            numbers = [f" to {numbers[-1]}"]
        name = "".join([name, *(n if n.startswith(" ") else f", {n}" for n in numbers)])
        yield f"{indent}{'└ ' if last else '├ '}{name}", first.kind, first.shape, first.parameters
        yield from branches(children, first.name, indent + ("  " if last else "│ "))


def look(children: dict[str, list[Row]], row: Row) -> object:
    """What two rows must have in common to be told as one."""
    below = tuple(look(children, child) for child in children.get(row.name, []))
    return row.kind, row.shape, row.parameters, below


def sizes(shape: str) -> str:
    """ "b=2 c=64" -> "2 x 64": of what is not called with a batch, the letters would be wrong."""
    return " x ".join(part.partition("=")[2] for part in shape.split())


def members(family: str) -> Iterator[str]:
    yield from ["| name | parameters | `model.maps` |", "| --- | --- | --- |"]
    for name in variants(family):
        parameters, maps, _, _ = facts(name)
        yield f"| `{name}` | {parameters:,} | {', '.join(maps)} |"
    if any(least(name) for name in variants(family)):
        yield f"\nNames that have no vocabulary of their own were given one of {TOKENS:,} tokens."


def features(*families: str) -> Iterator[str]:
    """Of all members of each, from the smallest to the largest."""
    columns = "names", "millions of parameters", "weights, `model.maps`", "`zoo.to_huggingface` gives", "decodes, `start`"
    yield from [f"| family | {' | '.join(columns)} |", "| --- | --- | --- | --- | --- | --- |"]
    for family in families:
        found = [facts(name) for name in variants(family)]
        sizes = sorted(parameters / 1e6 for parameters, *_ in found)
        ends = " to ".join(dict.fromkeys(f"{size:,.0f}" if size >= 10 else f"{size:.2g}" for size in (sizes[0], sizes[-1])))
        maps, classes = (dict.fromkeys(one for row in found for one in row[n]) for n in (1, 2))
        named = ", ".join(f"`{one}`" for one in classes)
        decodes = "yes" if all(row[3] for row in found) else "some" if any(row[3] for row in found) else ""
        yield f"| [{words(family)}](models/{family}.md) | {len(found)} | {ends} | {', '.join(maps)} | {named} | {decodes} |"


def variants(family: str) -> list[str]:
    return list(vars(importlib.import_module(f"zoo.{family}"))["VARIANTS"])


@cache
def facts(name: str) -> tuple[int, tuple[str, ...], tuple[str, ...], bool]:
    """(parameters, references, their class in transformers if there is one, whether it decodes)"""
    model = on_meta(name)
    try:
        kinds = (class_of(zoo.MODELS[name], zoo.arguments(name) | least(name)),)
    except ValueError:
        kinds = ()
    return count(model), tuple(model.maps), kinds, hasattr(model, "start")


def speed(name: str) -> Iterator[str]:
    yield from speeds.earlier() if name == "earlier" else speeds.table(name)


def least(name: str) -> dict[str, int]:
    """What cannot be left out."""
    return {"vocab_size": TOKENS} if zoo.arguments(name).get("vocab_size") is zoo.REQUIRED else {}


def on_meta(name: str, **arguments: int | str) -> zoo.Model:
    with without_values():
        return zoo.create(name, **(least(name) | arguments))


def inputs_of(model: zoo.Model, size: int) -> tuple[torch.Tensor, ...]:
    """What a model is called with, on the meta device: one image of `size` pixels, or a sentence of 16 tokens."""
    if isinstance(model, GAN):
        return (torch.empty(1, model.generator.latent_dim),)
    if isinstance(model, zoo.DiffusionModel):
        return torch.empty(1, model.in_channels, size, size), torch.zeros(1)
    if isinstance(model, zoo.ImageModel | VAE):
        return (torch.empty(1, model.in_channels, size, size),)
    tokens = torch.zeros(1, 16, dtype=torch.long)
    return (tokens, tokens) if isinstance(model, zoo.EncoderDecoder) else (tokens,)


def files_of(page: Path) -> set[str]:
    return set(re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M))


WRITERS = {"proven": proven, "guarded": guarded, "parts": parts, "members": members, "speed": speed, "features": features}


def main(check: bool) -> int:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    new = {page: found for page, text in texts.items() if (found := written(text)) != text}
    for page, text in new.items():
        print(f"{page.relative_to(ROOT)} is not up to date" if check else f"{page.relative_to(ROOT)} is written anew")
        if not check:
            page.write_text(text, encoding="utf-8")
    return int(check and bool(new))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
