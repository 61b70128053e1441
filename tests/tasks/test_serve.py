"""The server: answers are those of the commands, whatever is sent gets one clear sentence, and nothing stops it."""

from __future__ import annotations

import base64
import importlib
import json
import re

import pytest
from command import one_line

from tasks import serve
from tasks.serve import ServeOptions, server_of

pytest.importorskip("starlette.testclient", reason="serving needs zooproof[serving]")
from asking import INPUTS, PICTURE, client_of, close, error, outputs, png


@pytest.fixture(scope="module")
def client(loaded):
    with client_of(loaded, wait=0.001, body=200_000) as found:
        yield found


# ------------------------------------------------------------------------------------------------------------- answers


def predicted(capsys, program, run, command, *more):
    capsys.readouterr()
    words = [command, "--runs_dir", str(run.parent), "--name", run.name, "--device", "cpu", *more]
    assert importlib.import_module(f"tasks.{program}").main(words) == 0
    return capsys.readouterr().out


def test_answers_are_those_of_the_commands(served, client, capsys, tmp_path):
    texts = ["the cat 1", "axe 2"]
    lines = predicted(capsys, "text_classification", served["text"], "predict", "--text", *texts).splitlines()
    rows = [json.loads(line) for line in lines]
    assert close(outputs(client, "text", texts), [{"label": row["label"], "scores": row["scores"]} for row in rows])
    rows = [json.loads(predicted(capsys, "text_classification", served["pair"], "predict", "--text", "the a\tthe b"))]
    assert close(outputs(client, "pair", [["the a", "the b"]]), [{"label": rows[0]["label"], "scores": rows[0]["scores"]}])
    rows = [json.loads(predicted(capsys, "token_classification", served["token"], "predict", "--text", "Ada sees Bob ."))]
    assert close(outputs(client, "token", ["Ada sees Bob ."]), [{"spans": rows[0]["spans"]}])
    asked = {"question": "who", "context": "Ada is in Oslo."}
    words = ["--question", asked["question"], "--context", asked["context"]]
    row = json.loads(predicted(capsys, "question_answering", served["question"], "predict", *words))
    assert close(outputs(client, "question", [asked]), [{key: row[key] for key in row if key not in ("id", "question")}])
    (tmp_path / "lines").write_text("eins zwei\ndrei\n")
    lines = predicted(capsys, "translation", served["translation"], "translate", "--input", str(tmp_path / "lines")).splitlines()
    assert [x["translation"] for x in outputs(client, "translation", ["eins zwei", "drei"])] == lines
    words = ["--prompt", "the cat", "--max_new_tokens", "30", "--seed", "3"]
    said = predicted(capsys, "text_generation", served["generation"], "generate", *words)
    (found,) = outputs(client, "generation", [{"prompt": "the cat", "max_new_tokens": 30, "seed": 3}])
    assert "the cat" + found["text"] + "\n" == said
    assert (found["finish_reason"], found["tokens"] <= 30) in (("length", True), ("stop", True))
    (tmp_path / "a.png").write_bytes(base64.b64decode(PICTURE))
    out = tmp_path / "said.jsonl"
    predicted(
        capsys, "image_classification", served["image"], "predict", "--image", str(tmp_path / "a.png"), "--output", str(out)
    )
    row = json.loads(out.read_text())
    (found,) = outputs(client, "image", [PICTURE])
    assert found["label"] == row["class"]
    assert found["scores"][row["class_2"]] == pytest.approx(row["probability_2"], abs=2e-6)
    words = ["--classes", "light,0", "--count", "3", "--seed", "4", "--out", str(tmp_path / "sheet.png")]
    predicted(capsys, "image_generation", served["images"], "sample", *words)
    (found,) = outputs(client, "images", [{"classes": "light,0", "count": 3, "seed": 4}])
    assert close(found["sheet"], base64.b64encode((tmp_path / "sheet.png").read_bytes()).decode())
    assert (found["images"], found["rows"]) == (6, ["light", "dark"])


@pytest.mark.parametrize("name", INPUTS)
def test_batching_never_changes_an_answer(loaded, client, name):
    """Texts of other lengths beside it, a batch of one: the same."""
    with client_of(loaded, batch=1, wait=0) as alone:
        single = [outputs(alone, name, [one])[0] for one in INPUTS[name]]
    assert close(outputs(client, name, INPUTS[name] * 3), single * 3)


def test_pictures_are_uploaded(client):
    files = [("file", ("a.png", base64.b64decode(PICTURE), "image/png")), ("other", ("../b.jpg", png(50, 20, form="JPEG"), "x"))]
    response = client.post("/v1/models/image/predict", files=files)
    assert response.status_code == 200, response.text
    assert close(response.json()["outputs"][:1], outputs(client, "image", [PICTURE]))
    assert len(response.json()["outputs"]) == 2


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body must be JSON"),
        (b"{", "the body must be JSON"),
        (b"[" * 100_000, "the body must be JSON"),
        (b"\xff\xfe", "Unicode text in UTF-8"),
        (b'{"inputs": ["\\ud800"]}', "without lone surrogates"),
        (b'{"inputs": [NaN]}', "NaN is no number"),
        (b'{"inputs": [1e999]}', "a number of the body is too large"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "the body must be JSON"),
        (b"[]", "must be a JSON object, got []"),
        (b"{}", 'must be {"inputs": [...]}'),
        (b'{"inputs": []}', "with one input or more"),
        (b'{"inputs": "a"}', "with one input or more"),
        (b'{"inputs": ["a"], "path": "/etc/passwd"}', "and nothing else"),
    ],
)
def test_a_bad_body_is_one_sentence(client, body, said):
    for name in ("text", "generation", "image"):
        assert said in error(client.post(f"/v1/models/{name}/predict", content=body), 422)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *(
            (name, value, "must be")
            for name in INPUTS
            for value in (None, 1, True, [[]], {"a": 1})
            if name not in ("generation", "images", "noise")
        ),
        ("text", "x" * 501, "must have 500 characters at most, got 501"),
        ("pair", ["a"], "must be two strings in a list"),
        ("question", {"question": " ", "context": "a"}, "must have some text"),
        ("translation", "a\nb", "must be one line"),
        ("translation", "qz" * 249, "tokens, at most"),
        ("generation", 1, "prompt must be a string, got 1"),
        ("generation", {"prompt": "a", "temperature": 0}, "temperature must be above 0"),
        ("generation", {"prompt": "a", "max_new_tokens": "x"}, "max_new_tokens must be of type"),
        ("generation", {"prompt": "a", "max_new_tokens": 501}, "max_new_tokens must be 500 or less"),
        ("generation", {"prompt": "a", "runs_dir": "/"}, "'runs_dir' is no setting"),
        *(("images", value, "must be an object") for value in (None, 1, "x", [])),
        ("images", {"a": 1}, "'a' is no setting: there are classes, count, seed"),
        ("images", {"count": 51}, "ask for 102 images, at most 100 are made"),
        ("images", {"count": 0}, "count must be from 1 to 10,000"),
        ("images", {"classes": "lihgt"}, "'lihgt' is no class, did you mean light?"),
        ("images", {"seed": -1}, "seed must be 0 or more"),
        ("images", {"classes": 7}, "classes must be a string, got 7"),
        ("images", {"classes": "0-1," * 200}, "classes must have 500 characters at most, got 800"),
        ("noise", {"classes": "0"}, "the model was trained without classes"),
        ("image", "/etc/passwd", "must be a picture in base64"),
        ("image", base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode(), "none of PNG, JPEG"),
        ("image", base64.b64encode(png(32, 32)[:60]).decode(), "cannot be read as an image"),
    ],
)
def test_a_bad_input_is_one_sentence(client, name, value, said):
    assert said in error(client.post(f"/v1/models/{name}/predict", json={"inputs": [value]}), 422)


def test_a_bomb_of_pixels_is_refused(client):
    """Gray, of 49 million pixels in some kilobytes."""
    content = png(7000, 7000, mode="1")
    assert len(content) < 20_000
    said = error(client.post("/v1/models/image/predict", files={"file": content}), 422)
    assert "49,000,000 pixels, at most 40,000,000 are taken" in said


@pytest.mark.parametrize("content", [b"", b"--x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'])
def test_a_bad_form_is_one_sentence(client, content):
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        error(client.post("/v1/models/image/predict", content=content, headers={"Content-Type": kind}), 422)
    assert "only pictures" in error(client.post("/v1/models/text/predict", files={"file": b"x"}), 422)


def test_other_paths_methods_and_models(client):
    assert "no such model" in error(client.post("/v1/models/nowhere/predict", json={"inputs": ["a"]}), 404)
    for path in ("/v1/models/..%2f..%2fetc/predict", "/nowhere"):
        error(client.post(path, json={"inputs": ["a"]}), 404)
    error(client.get("/v1/models/text/predict"), 405)


def test_limits_of_size_number_time_and_room(loaded):
    with client_of(loaded, body=1000, queue=2) as client:
        assert "1,000 bytes at most" in error(client.post("/v1/models/text/predict", content=b" " * 1001), 413)
        chunks = iter([b" " * 600] * 2)
        assert "1,000 bytes at most" in error(client.post("/v1/models/text/predict", content=chunks), 413)
        assert "inputs must be 2 at most, got 3" in error(client.post("/v1/models/text/predict", json={"inputs": ["a"] * 3}), 422)
    with client_of(loaded, timeout=1e-9) as client:
        assert "not done within 1e-09 seconds" in error(client.post("/v1/models/text/predict", json={"inputs": ["a"]}), 504)


def test_a_full_queue_is_503(loaded, monkeypatch):
    from tasks.serving import server as serving

    async def full(self, items):
        raise serving.Busy("2 of 2 places are taken")

    monkeypatch.setattr(serving.Batcher, "answers", full)
    with client_of(loaded) as client:
        for name in ("text", "generation"):
            response = client.post(f"/v1/models/{name}/predict", json={"inputs": INPUTS[name]})
            assert "2 of 2 places are taken" in error(response, 503)
            assert response.headers["retry-after"] == "1"


def test_a_fault_of_the_model_is_told_without_details(loaded, monkeypatch, capsys):
    monkeypatch.setattr(loaded.models["text"], "answer", lambda items: 1 / 0)
    with client_of(loaded) as client:
        for _ in range(2):
            response = client.post("/v1/models/text/predict", json={"inputs": ["a"]})
            assert "division" not in error(response, 500)
        assert outputs(client, "pair", INPUTS["pair"])
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_token_is_asked_for(loaded):
    with client_of(loaded, token="secret") as client:
        for value in (None, b"Bearer secre", b"secret", "Bearer é".encode()):
            header = {"Authorization": value} if value else {}
            for path in ("/v1/models", "/metrics"):
                response = client.get(path, headers=header)
                assert "a bearer token is needed" in error(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
            error(client.post("/v1/models/text/predict", headers=header, json={"inputs": ["a"]}), 401)
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/health/ready").status_code == 200


# ------------------------------------------------------------------------------------------------------ how it is doing


def test_health_models_and_metrics(loaded):
    with client_of(loaded) as client:
        assert client.get("/health/live").json() == {"status": "live"}
        assert client.get("/health/ready").json() == {"status": "ready"}
        rows = client.get("/v1/models").json()["data"]
        assert {row["id"]: row["task"] for row in rows}["question"] == "question-answering"
        outputs(client, "text", ["a", "b"])
        client.post("/v1/models/text/predict", content=b"")
        client.post("/v1/models/nowhere/predict", content=b"")
        found = client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = found.text.splitlines()
    for line in ('requests_total{model="text",status="200"} 1', 'requests_total{model="text",status="422"} 1',
                 'batch_items_total{model="text"} 2', 'waiting{model="text"} 0',
                 'request_seconds_bucket{model="text",le="+Inf"} 2', 'request_seconds_count{model="text"} 2'):  # fmt: skip
        assert f"zooproof_{line}" in lines
    assert "nowhere" not in found.text
    sample = re.compile(r'zooproof_\w+\{\w+="[^"]*"(,\w+="[^"]*")*\} [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)


def test_a_model_saved_by_hand_is_served(tmp_path, served):
    """A folder that no program has left: its config.json says what it is."""
    import shutil

    for name in ("text", "token", "question", "generation", "translation", "image", "images"):
        shutil.copytree(served[name], tmp_path / name)
        (tmp_path / name / "options.json").unlink(missing_ok=True)
    server = server_of(ServeOptions(run=[str(path) for path in tmp_path.iterdir()], device="cpu"))
    with client_of(server) as client:
        assert {row["id"]: row["task"].split("-")[0] for row in client.get("/v1/models").json()["data"]} == {
            "text": "text", "token": "token", "question": "question", "generation": "text", "translation": "translation",
            "image": "image", "images": "image",
        }  # fmt: skip


def test_a_damaged_model_is_found_before_it_is_asked(served, tmp_path, capsys):
    import shutil

    shutil.copytree(served["noise"], tmp_path / "noise")
    config = json.loads((tmp_path / "noise" / "config.json").read_text())
    (tmp_path / "noise" / "config.json").write_text(json.dumps(config | {"image": [3, 8, 8]}))
    line = one_line(capsys, serve.main, str(tmp_path / "noise"))
    assert "noise: the model fails on an example: images: channels must be 1, got 3" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give the folder of a run or more"),
        (["nowhere"], "nowhere is not there: the folder of a run is expected"),
        (["{text}", "{text}/../text"], "there is a model 'text' already"),
        (["{folder}"], "is no run: runs of image_classification, "),
        (["{text}", "--port", "70000"], "--port must be from 0 to 65,535"),
        (["{text}", "--token", "a b"], "--token must be ASCII without spaces"),
        (["{text}", "--max_batch", "0"], "--max_batch must be 1 or more"),
        (["--port", "1", "{text}"], "stands without an option"),
        (["{text}", "--prot", "1"], "--prot is unknown, did you mean --port"),
    ],
)
def test_bad_usage_is_one_line(served, tmp_path, capsys, words, said):
    places = {"text": served["text"], "folder": tmp_path}
    assert said in one_line(capsys, serve.main, *(word.format(**places) for word in words))
