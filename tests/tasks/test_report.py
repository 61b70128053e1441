"""A run's page: everything that the folder holds, escaped, in HTML that is whole, whatever is missing or damaged."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from command import one_line, programs
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tasks import report
from tasks.image_classification import TrainOptions
from tasks.options import owner
from tasks.translation import TrainOptions as TranslationOptions

VOID = {"meta", "img", "link", "br", "hr", "input"}
NASTY = "</td><script>alert('x')</script>&amp;\"'\x00\udcff"


class Page(HTMLParser):
    """Elements and text of a page. Errors: `AssertionError` if elements are not closed in order, or fetch something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.declaration = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, "elements are left open"
        assert self.declaration == "DOCTYPE html"

    def handle_decl(self, decl):
        self.declaration = decl

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs)
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert found.keys() <= {"lang", "charset", "name", "content", "class", "dir", "alt", "src"}, found
        assert found.get("src", "data:").startswith("data:"), "the page needs another file"
        self.seen.append((tag, found))
        if tag not in VOID:
            self.open.append((tag, found))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        assert data == "\n" or self.open, "text outside"
        if data.strip():
            self.texts.append((tuple(name for name, _ in self.open), data))
        assert "\x00" not in data
        if self.open and self.open[-1][0] == "style":
            assert "url(" not in data
            assert "@import" not in data

    def texts_in(self, tag: str) -> list[str]:
        return [text for names, text in self.texts if tag in names]


def section(page: Page, title: str) -> list[str]:
    """Texts below a heading, to the next one."""
    texts = [(names, text) for names, text in page.texts if "section" in names]
    heads = [n for n, (names, _) in enumerate(texts) if "h2" in names] + [len(texts)]
    begin = next(n for n in heads if texts[n][1] == title)
    return [text for _, text in texts[begin + 1 : next(n for n in heads if n > begin)]]


def png(path: Path, level: int = 0) -> None:
    Image.new("L", (3, 2), level).save(path)


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run's folder with everything in it."""
    folder = tmp_path / "a run"
    folder.mkdir()
    options = TrainOptions(model="resnet18", optimizer="sgd", epochs=3, name="a run")
    about = {"data": {"classes": ["ant", "bee"], "train": {"images": 13}}, "a": {"b": {"c": {"d": {"e": 5}}}}}
    write(folder / "options.json", asdict(options) | {"about": about, "layers": 9})
    write(folder / "config.json", {"model": "resnet18", "arguments": {"num_classes": 2}, "classes": ["ant", "bee"]})
    rows = [{"epoch": n, "step": 9 * n, "train_loss": 1 / n, "valid_accuracy": 0.5 + n % 2 / 4, "lr": 0.01} for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "summary.json", {"valid_accuracy": 0.75, "best_valid_accuracy": 0.75, "best_epoch": 3, "parameters": 11169858,
                                    "test_accuracy": 0.8, "seconds": 1.5})  # fmt: skip
    report.write_examples(folder, [{"source": "Käse", "translation": "cheese", "expected": ["cheese", "a cheese"]}])
    for level, name in enumerate(("attention", "confusion", "curves", "features", "mistakes")):
        png(folder / f"{name}.png", level)
    return folder


FILES = ("options.json", "config.json", "metrics.jsonl", "summary.json", "examples.json")


def write(path: Path, content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_page_has_what_the_folder_has(run):
    page = Page(report.write(run, TrainOptions))
    assert page.texts_in("title") == page.texts_in("h1") == ["a run"]
    assert page.texts_in("p") == ["resnet18; 11,169,858 parameters; 3 of 3 epochs; best valid_accuracy 0.75 after epoch 3"]
    assert page.texts_in("h2") == ["Result", "Pictures", "Examples", "Epochs", "Options", "Model", "Data and versions"]
    assert section(page, "Result")[:2] == ["test_accuracy", "0.8"], "what was measured at the end comes first"
    assert section(page, "Examples") == ["source", "translation", "expected", "Käse", "cheese", "cheese, a cheese"]
    assert section(page, "Epochs")[:5] == ["epoch", "step", "train_loss", "valid_accuracy", "lr"]
    assert section(page, "Epochs")[-5:] == ["3", "27", "0.33333", "0.75", "0.01"]
    assert section(page, "Model") == ["model", "resnet18", "arguments num_classes", "2", "classes", "ant, bee"]
    assert section(page, "Data and versions") == ["data classes", "ant, bee", "data train images", "13", "a b c d", "e 5"]
    source = run.joinpath("index.html").read_text(encoding="utf-8")
    assert source.count('<tr class="best">') == 1
    assert '<tr class="best"><td class="number"><span dir="auto">3</span>' in source
    assert "prefers-color-scheme: dark" in source


def test_options_that_differ_come_first_then_groups(run):
    """What the others imply, such as sgd's learning rate, is no choice of the user's."""
    texts = section(Page(report.write(run, TrainOptions)), "Options")
    assert texts[:9] == ["option", "value", "default", "epochs", "3", "7", "optimizer", "sgd", "adamw"]
    assert texts[9:12] == ["model", "resnet18", "vgg11_bn"]
    titles = list(dict.fromkeys(owner(TrainOptions, name).title for name in TrainOptions.__dataclass_fields__))
    assert [text for text in texts if text.endswith(", at their defaults")] == [f"{t}, at their defaults" for t in titles]
    assert texts[texts.index("lr") + 1] == "0.02"
    known = {*TrainOptions.__dataclass_fields__}
    assert known <= {*texts}
    assert texts[-3:] == ["also kept", "layers", "9"], "an option of another version"


@pytest.mark.parametrize("program", [name for name, module in programs().items() if hasattr(module, "TrainOptions")])
def test_the_program_tells_the_options(run, program):
    kind = programs()[program].TrainOptions
    write(run / "options.json", asdict(kind()) | {"about": {"program": program}})
    assert report.kind_of(run) is kind
    told = report.write(run).read_bytes()
    assert b"<th>default</th>" not in told, "nothing was chosen"
    assert told == report.write(run, kind).read_bytes()


@pytest.mark.parametrize("made", ["tasks.nothing", "tasks.options", "os", 3])
def test_a_run_of_an_unknown_program_is_told_as_one_of_images(run, made):
    write(run / "options.json", asdict(TrainOptions()) | {"about": {"program": made}})
    assert report.kind_of(run) is TrainOptions


def test_pictures_are_in_the_page(run):
    """Curves, confusion, mistakes first; what is no picture is left out."""
    (run / "broken.png").write_bytes(b"\x89PN")
    (run / "folder.png").mkdir()
    page = Page(report.write(run))
    images = [found for tag, found in page.seen if tag == "img"]
    names = ["curves.png", "confusion.png", "mistakes.png", "attention.png", "features.png"]
    assert [found["alt"] for found in images] == names
    for found in images:
        kind, _, content = found["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content, validate=True) == (run / found["alt"]).read_bytes()
    assert page.texts_in("figcaption") == names


def test_the_same_files_give_the_same_page(run):
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first, "a page that is there already changes the next one"
    png(run / "curves.png", 99)
    assert report.write(run).read_bytes() != first


@pytest.mark.parametrize("missing", [names for n in (0, 1, 5) for names in combinations(FILES, n)])
def test_whatever_is_missing_is_left_out(run, missing):
    """A run that goes on or was killed has no summary; an old one has other files."""
    for name in missing:
        (run / name).unlink()
    page = Page(report.write(run, TrainOptions))
    gone = {"options.json": "Options", "config.json": "Model", "metrics.jsonl": "Epochs", "summary.json": "Result",
            "examples.json": "Examples"}  # fmt: skip
    assert {*gone.values(), "Pictures"} - {*page.texts_in("h2")} == {gone[name] for name in missing}
    assert ("not finished" in page.texts_in("p")[0]) == ("summary.json" in missing)


def test_everything_is_text(tmp_path):
    """Names and values of every file, the folder's and the pictures' too."""
    folder = tmp_path / "<b>&amp;'\""
    folder.mkdir()
    values = dict.fromkeys((NASTY, "model", "epochs", "best_valid_<i>", "long"), NASTY) | {"list": [NASTY, {NASTY: NASTY}]}
    for name in ("options", "config", "summary"):
        write(folder / f"{name}.json", values | {"long": NASTY * 9})
    (folder / "metrics.jsonl").write_text(json.dumps({NASTY: NASTY, "epoch": NASTY}) + "\n")
    report.write_examples(folder, [{NASTY: NASTY}])
    png(folder / "<i>&.png")
    page = Page(report.write(folder))
    shown = NASTY.replace("\x00", "␀").replace("\udcff", "�")
    assert page.texts_in("h1") == ["<b>&amp;'\""]
    assert page.texts_in("figcaption") == ["<i>&.png"]
    for tag, count in (("dt", 3), ("dd", 6), ("th", 1), ("td", 3)):
        assert sum(shown in text for text in page.texts_in(tag)) >= count, tag


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["about", "epoch", "epochs", "model", "best_epoch", "best_valid_x", "lr", "init", "parameters"]
OBJECTS = st.dictionaries(st.sampled_from(KEYS), VALUES)
CONTENTS = st.one_of(
    st.binary(max_size=30),
    VALUES.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    st.lists(OBJECTS, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(OBJECTS, max_size=3).map(lambda rows: json.dumps(rows).encode()),
    OBJECTS.map(lambda value: json.dumps(value).encode()[:-5]),
)
DEEP, DEEPER, WRONG = b'{"a":' * 900 + b"1" + b"}" * 900, b"[" * 100_000, b'{"runs_dir": 5, "optimizer": [], "epochs": {}}'


@example([DEEP] * 5, TrainOptions)
@example([DEEPER] * 5, TrainOptions)
@example([b"\xff" + WRONG] * 5, None)
@example([WRONG] * 5, TrainOptions)
@example([b"9" * 5000] * 5, TrainOptions)
@given(st.lists(CONTENTS, min_size=5, max_size=5), st.sampled_from([None, TrainOptions, TranslationOptions]))
def test_no_file_is_too_damaged_or_too_old(tmp_path_factory, contents, kind):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_bytes(content)
    Page(report.write(folder, kind))


def test_the_command_makes_pages(run, tmp_path, capsys):
    png(tmp_path / "curves.png")
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'index.html'}\n"
    Page(run / "index.html")
    for wrong in (tmp_path, tmp_path / "nothing", run / "options.json"):
        assert report.main([str(run), str(wrong)]) == 2
        assert (
            capsys.readouterr().err
            == f"error: {wrong} is no run's folder: it has no options.json, metrics.jsonl or summary.json\n"
        )
    assert not (tmp_path / "index.html").exists()
    assert "the folder of a run is needed" in one_line(capsys, report.main)
    assert "--all is unknown" in one_line(capsys, report.main, run, "--all")
    assert report.main(["--help"]) == 0
    assert "index.html" in capsys.readouterr().out


def test_a_real_run_leaves_its_page(finished):
    folder, _ = finished
    page = Page(folder / "index.html")
    assert page.texts_in("h2") == ["Result", "Pictures", "Epochs", "Options", "Model", "Data and versions"]
    assert [found["alt"] for tag, found in page.seen if tag == "img"] == ["curves.png", "confusion.png", "mistakes.png"]
    assert (folder / "index.html").read_bytes() == report.write(folder).read_bytes()
