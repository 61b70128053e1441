"""Asking a server in this process: its clients, inputs for each model, and what its answers are held against."""

from __future__ import annotations

import base64
import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from starlette import testclient

from tasks.serving.server import Limits, Server


@contextlib.contextmanager
def client_of(server, **limits):
    """A client of the same models, with other limits."""
    with testclient.TestClient(Server(server.models, Limits(**limits)).app(), raise_server_exceptions=False) as client:
        yield client


def png(*size, mode="RGB", color=0, form="PNG"):
    Image.new(mode, size, color).save(file := io.BytesIO(), form)
    return file.getvalue()


PICTURE = base64.b64encode(png(32, 32, color=(200, 10, 10))).decode()
INPUTS = {
    "image": [PICTURE, f"data:image/png;base64,{PICTURE}"],
    "text": ["the cat 1", "", "axe " * 40],
    "pair": [["the a", "the a"], ["", "x"]],
    "token": ["Ada sees Bob .", "", "Bob " * 60],
    "question": [{"question": "who", "context": "Ada is in Oslo."}, {"question": "where", "context": "x " * 80}],
    "translation": ["eins", "", "zwei drei"],
    "images": [{}, {"count": 3, "seed": 2}, {"classes": "1", "count": 2}],
    "noise": [{"count": 3, "seed": 2}, {"count": 10}],
    "generation": [
        {"prompt": "the cat", "max_new_tokens": 20},
        {"max_new_tokens": 9},
        {"max_new_tokens": 5, "greedy": True},
        {"prompt": "a dog ran to", "max_new_tokens": 40, "seed": 3, "repetition_penalty": 1.2},
    ],
}


def outputs(client, name, inputs):
    response = client.post(f"/v1/models/{name}/predict", json={"inputs": inputs})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == name
    return response.json()["outputs"]


def error(response, status):
    assert response.status_code == status, response.text
    said = response.json()["error"]["message"]
    assert "\n" not in said
    assert "Traceback" not in said
    return said


def close(found, wanted):
    """The same, numbers up to their last digits, pixels of PNG files up to rounding."""
    if isinstance(wanted, float):
        return found == pytest.approx(wanted, abs=2e-6)
    if isinstance(wanted, str) and wanted.startswith("iVBOR") and wanted != found:
        return bool((abs(pixels(found) - pixels(wanted)) <= 1).all())
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return found == wanted


def pixels(sheet):
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as picture:
        return np.asarray(picture).astype(int)
