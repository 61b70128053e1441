"""Published settings of decoding: what is read, used and told, against Hugging Face's `generate` with the folder's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command import complaint
from published import PAIRS, make, ours, theirs

from tasks import marian
from tasks.generation_config import USED, USUAL, generation_of
from tasks.translating import search
from zoo import files

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses", "ignore:.*resume_download:FutureWarning")

TEXTS = [source for source, _ in PAIRS[::17]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with pytest.warns(UserWarning, match="sacremoses"):
        return make(tmp_path_factory.mktemp("marian"), end=3.0)


def changed(folder: Path, to: Path, settings: dict[str, Any], file: str = "generation_config.json") -> Path:
    """A copy with these settings in one of its files; None takes one away."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    found = {**files.read_json(to / "generation_config.json"), **settings}
    if file == "config.json":  # as before there was the other one
        (to / "generation_config.json").unlink()
        found = files.read_json(to / file) | {key: found[key] for key in found if key in USED}
    files.write_json(to / file, {key: value for key, value in found.items() if value is not None})
    return to


LEFT_OUT = [[52], [40], [16], [0]]
"""Padding, which never comes, two of the tokens that come most often, and the one that ends a sentence, which stays."""
SETTINGS = {
    "greedy": dict(max_length=12, bad_words_ids=LEFT_OUT),
    "greedy, forced": dict(max_length=12, forced_eos_token_id=0),
    "greedy, longer than usual": dict(max_length=80),
    "beams": dict(num_beams=4, max_length=12),
    "beams, forced": dict(num_beams=3, max_new_tokens=9, forced_eos_token_id=0),
    "beams, longer than usual": dict(num_beams=3, max_length=80, forced_eos_token_id=0),
    "words": dict(num_beams=3, max_length=12, bad_words_ids=LEFT_OUT),
    "as published": dict(num_beams=4, max_length=20, renormalize_logits=True, bad_words_ids=LEFT_OUT, forced_eos_token_id=0),
    "long ones": dict(num_beams=3, max_length=30, length_penalty=2.0),
    "short ones": dict(num_beams=3, max_length=30, length_penalty=-1.0),
    "the first ones": dict(num_beams=3, max_length=30, early_stopping=True),
    "never": dict(num_beams=3, max_length=30, length_penalty=2.0, early_stopping="never"),
}


@pytest.mark.parametrize(
    ("name", "file"), [*((name, "generation_config.json") for name in SETTINGS), ("as published", "config.json")]
)
def test_translations_are_those_of_the_folders_settings(folder, tmp_path, name, file):
    """In float64; whichever file has them. Without one of them there would be other translations."""
    published = changed(folder, tmp_path / "a", {"forced_eos_token_id": None, "bad_words_ids": [[52]], **SETTINGS[name]}, file)
    (model, tokenizer), (reference, other) = ours(published), theirs(published)
    kept = marian.read(published).kept
    generation = generation_of(kept, tokenizer)
    assert generation.told.startswith(f"decoding as {file} says: ")
    with torch.no_grad():
        rows = reference.double().generate(**other(TEXTS, return_tensors="pt", padding=True))
    expected = other.batch_decode(rows, skip_special_tokens=True)
    options = dict(longest=generation.longest, batch_size=4)
    found = [one[0] for one in search(model.double(), tokenizer, TEXTS, generation=generation, **options)]
    assert [one.text for one in found] == expected
    for key in SETTINGS[name].keys() - {"num_beams", "max_length", "max_new_tokens"}:
        poorer = generation_of({file: {k: v for k, v in kept[file].items() if k != key}}, tokenizer)
        assert [one[0] for one in search(model, tokenizer, TEXTS, generation=poorer, **options)] != found, key


def test_a_caller_chooses_otherwise(folder):
    """Beams, length penalty, and how long; the rest stays."""
    (model, tokenizer), (reference, other) = ours(folder), theirs(folder)
    generation = generation_of({"config.json": dict(num_beams=4, max_length=9, length_penalty=3.0)}, tokenizer)
    options = dict(num_beams=2, length_penalty=-0.5, max_new_tokens=13, max_length=None, forced_eos_token_id=None)
    with torch.no_grad():
        rows = reference.double().generate(**other(TEXTS, return_tensors="pt", padding=True), **options)
    found = search(model.double(), tokenizer, TEXTS, beam=2, length_penalty=-0.5, longest=13, generation=generation)
    assert [one[0].text for one in found] == other.batch_decode(rows, skip_special_tokens=True)


def test_room_for_a_translation_doubles(folder, monkeypatch):
    """As long as sentences do not end; but for "never", which asks how likely a hypothesis may get by its last step."""
    model, tokenizer = ours(folder)
    start, seen = model.start, []
    monkeypatch.setattr(model, "start", lambda *given, capacity: seen.append(capacity) or start(*given, capacity=capacity))
    for more, rooms in (({}, [69, 137, 140]), ({"num_beams": 2, "early_stopping": "never"}, [140]), ({"max_length": 69}, [69])):
        generation = generation_of({"config.json": {"max_length": 140, **more}}, tokenizer)
        seen.clear()
        search(model, tokenizer, TEXTS, longest=generation.longest, generation=generation)
        assert seen == rooms
    seen.clear()
    search(model, tokenizer, TEXTS, longest=139)  # of a model that brings no settings
    assert seen == [69]


def test_what_is_said(folder):
    _, tokenizer = ours(folder)
    said = {
        "num_beams": 6,
        "max_length": 512,
        "forced_eos_token_id": [0],
        "bad_words_ids": [[52], [0], [3, 4]],
        "do_sample": True,
    }
    said |= {"no_repeat_ngram_size": 3, "repetition_penalty": None, "early_stopping": False, "top_k": 50, "vocab_size": 53}
    found = generation_of({"generation_config.json": said, "config.json": {"num_beams": 2}}, tokenizer)
    assert (found.beams, found.longest, found.forced_eos, found.forbidden) == (6, 511, True, (52,))
    assert found.told == (
        "decoding as generation_config.json says: num_beams 6, max_length 512, forced_eos_token_id [0], "
        "bad_words_ids [[52], [0], [3, 4]]; not used of generation_config.json: do_sample True, no_repeat_ngram_size 3, "
        "bad_words_ids of several tokens [[3, 4]]"
    )
    for nothing in (None, {}, {"tokenizer_config.json": {}}, 5, {"config.json": 5}):
        assert generation_of(nothing, tokenizer) is USUAL
    assert generation_of({"config.json": {"d_model": 8}}, tokenizer).told == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(num_beams=0), "num_beams must be a whole number from 1, got 0"),
        (dict(num_beams="4"), "num_beams must be a whole number from 1, got '4'"),
        (dict(num_beams=2.5), "num_beams must be a whole number from 1"),
        (dict(max_length=1), "max_length must be a whole number from 2, got 1"),
        (dict(max_new_tokens=[]), "max_new_tokens must be a whole number from 1, got []"),
        (dict(length_penalty="long"), "length_penalty must be a number, got 'long'"),
        (dict(length_penalty=float("inf")), "length_penalty must be a number, got inf"),
        (dict(early_stopping="soon"), "early_stopping must be true, false or \"never\", got 'soon'"),
        (dict(forced_eos_token_id=4), "forced_eos_token_id must be the tokenizer's eos, 0, got 4"),
        (dict(bad_words_ids=[5]), "bad_words_ids must be lists of tokens from 0 to 52, got [5]"),
        (dict(bad_words_ids=[[53]]), "bad_words_ids must be lists of tokens from 0 to 52"),
        (dict(bad_words_ids={}), "bad_words_ids must be lists of tokens"),
        (dict(renormalize_logits="x"), "renormalize_logits must be true or false, got 'x'"),
    ],
)
def test_settings_that_cannot_be(folder, tmp_path, settings, words):
    assert f"generation_config.json: {words}" in complaint(marian.read, changed(folder, tmp_path / "a", settings))
