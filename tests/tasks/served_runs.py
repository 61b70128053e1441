"""A tiny run of each task that is served, trained by the real commands."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import zoo
from tasks.generators import GENERATORS

WORDS = {"animal": ["cat", "dog", "cow"], "tool": ["saw", "axe", "file"]}
PAIRS = [("eins", "one"), ("zwei", "two"), ("drei", "three"), ("eins zwei", "one two"), ("zwei drei", "two three")]
TAGGED = ["Ada B-PER", "sees O", "Bob B-PER", ". O"]


def train(folder: Path) -> dict[str, Path]:
    """The runs, by task."""
    texts, texts2 = (folder / f"{name}.csv" for name in ("texts", "texts2"))
    rows = [f'"the {word} {n}",{kind}' for n in range(8) for kind, words in WORDS.items() for word in words]
    texts.write_text("\n".join(["text,label", *rows]))
    texts2.write_text("\n".join(["a,b,label", *(f"the {a},the {b},{a == b}" for a in "abcd" for b in "abcd")]))
    (folder / "corpus").mkdir()
    for split in ("train", "valid", "test"):
        for side, language in enumerate(("de", "en")):
            (folder / "corpus" / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in PAIRS))
    tagged = folder / "tags.conll"
    tagged.write_text("\n".join(["\n".join(TAGGED) + "\n"] * 12))
    answers = [{"id": f"q{n}", "question": "who", "answers": [{"text": "Ada", "answer_start": 0}]} for n in range(8)]
    squad = {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": "Ada is in Oslo.", "qas": answers}]}]}
    (folder / "squad.json").write_text(json.dumps(squad))
    (folder / "prose.txt").write_text("the cat sat on the mat\na dog ran to the cat\nna\u00efve caf\u00e9\n" * 20)
    (folder / "more.txt").write_text("the dog sat on the cat\n" * 5)
    small = ["--dim=16", "--layers=1", "--epochs=1", "--tracker=none"]

    def splits(path: Path) -> list[str]:
        return [f"--{split}={path}" for split in ("train", "valid", "test")]

    generation = [f"--train={folder / 'prose.txt'}", f"--valid={folder / 'more.txt'}", f"--test={folder / 'more.txt'}"]
    windows = ["--context=24", "--overlap=4", "--vocab_size=280"]
    bert = ["--model=bert_small", "--level=word", "--context=16", "--batch_tokens=64", *small]
    corpus = [f"--dataset_path={folder / 'corpus'}", "--source=de", "--target=en", "--batch_tokens=24", "--epochs=1"]
    words = {
        "image": ("image_classification", [f"--data=folder:{pictures(folder / 'pictures')}", "--image_size=32",
                                           "--model=resnet20", "--epochs=1", "--tracker=none"]),
        "text": ("text_classification", [*splits(texts), *bert]),
        "pair": ("text_classification", [*splits(texts2), "--columns=a,b,label", *bert]),
        "token": ("token_classification", [*splits(tagged)[:2], *windows, *small]),
        "question": ("question_answering", [*splits(folder / "squad.json")[:2], *windows, *small]),
        "translation": ("translation", [*corpus, "--max_length=20", "--tracker=none"]),
        "generation": ("text_generation", [*generation, "--context=32", "--vocab_size=280", *small, "--dim=24"]),
    }  # fmt: skip
    for name, (program, options) in words.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = importlib.import_module(f"tasks.{program}").main(
                ["train", *options, "--device=cpu", f"--runs_dir={folder / 'runs'}", f"--name={name}"]
            )
        assert code == 0, said.getvalue()
    generators(folder / "runs")
    return {name: folder / "runs" / name for name in (*words, "images", "noise")}


def generators(runs: Path) -> None:
    """As a training leaves them, which here there was none of: with classes, in one step; without, by a sampler that draws."""
    torch.manual_seed(0)
    made = {
        "images": (zoo.create("dcgan_8", num_classes=2), GENERATORS["dcgan"], ["dark", "light"]),
        "noise": (zoo.create("unet_small", in_channels=1), replace(GENERATORS["ddpm"], sampler="ddpm", steps=2), []),
    }
    for name, (model, generator, classes) in made.items():
        for norm in model.modules():  # as if it had seen images
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_var, 0.5, 2)
        model.config |= {"generation": generator.config(), "classes": classes, "image": [1, 8, 8]}
        zoo.save(model, runs / name, "best.safetensors")


def pictures(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for level, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for n in range(4):
                pixels = (draw.integers(0, 120, (32, 32, 3)) + 60 * level).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{n}.png")
    return folder
