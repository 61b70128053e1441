"""What deploy/ says about our program is true: commands, options, ports, paths of probes, the token, extras, folders."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

testclient = pytest.importorskip("starlette.testclient", reason="serving needs zooproof[serving]")
from echoes import server as echoes  # noqa: E402

from tasks import commands  # noqa: E402
from tasks.serve import COMMANDS, PROGRAM, TOKEN, ServeOptions  # noqa: E402

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def documents(name):
    return [*yaml.safe_load_all((ROOT / "deploy" / name).read_text())]


def of_docker(word):
    """The list that an instruction of the Dockerfile has."""
    return json.loads(re.findall(rf"^{word} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])


def options(words):
    """As the program reads them."""
    assert words[:3] == ["python", "-m", PROGRAM]
    _, found = commands.parse(PROGRAM, COMMANDS, words[3:])
    return ServeOptions(**(found | {"device": "cpu"}))


@pytest.fixture(scope="module")
def client():
    with testclient.TestClient(echoes().app()) as found:
        yield found


def probes(container):
    return [container[name]["httpGet"] for name in container if name.endswith("Probe")]


def test_the_image_runs_our_program(client):
    found = options([*of_docker("ENTRYPOINT"), *of_docker("CMD")])
    assert (found.host, found.port, found.run) == ("0.0.0.0", 8000, ["/runs/model"])
    assert f"EXPOSE {found.port}\n" in DOCKERFILE
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE
    assert re.search(r"^USER \d{4,}$", DOCKERFILE, re.MULTILINE), "not root"
    (url,) = re.findall(r"http://127.0.0.1:8000(/[\w/]+)", DOCKERFILE)
    assert client.get(url).status_code == 200
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extras,) = re.findall(r"\"\.\[([\w,]+)\]\"", DOCKERFILE)
    assert {*extras.split(",")} <= {*project["project"]["optional-dependencies"]}
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    assert all((ROOT / one).exists() for one in copied)
    assert {one.partition(".")[0] for one in project["tool"]["setuptools"]["packages"]} <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied


def test_compose_gives_right_options():
    (found,) = documents("compose.yaml")
    (service,) = found["services"].values()
    given = options([*of_docker("ENTRYPOINT"), *service["command"]])
    assert len(given.run) == 2
    assert service["ports"] == [f"127.0.0.1:{given.port}:{given.port}"]
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    assert [*service["environment"]] == [TOKEN]
    mounted = service["volumes"][0].split(":")
    assert all(run.startswith(mounted[1] + "/") for run in given.run)
    assert mounted[2] == "ro"


def test_kubernetes_asks_what_there_is(client):
    deployment, service = documents("kubernetes.yaml")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    given = options([*of_docker("ENTRYPOINT"), *container["args"]])
    (port,) = container["ports"]
    assert port["containerPort"] == given.port
    assert len(probes(container)) == 3
    for probe in probes(container):
        assert probe["port"] == port["name"]
        assert client.get(probe["path"], headers={"Host": "10.0.0.7"}).status_code == 200
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live", "a server that is busy is not killed"
    notes = deployment["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(given.port)
    assert client.get(notes["prometheus.io/path"]).status_code == 200
    assert container["env"][0]["name"] == TOKEN
    assert {*container["resources"]} == {"requests", "limits"}
    assert {*container["resources"]["limits"]} == {"cpu", "memory"}
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    paused = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= paused + 30, "as long as the server goes on after SIGTERM"


def test_kserve_asks_what_there_is(client):
    (found,) = documents("kserve.yaml")
    predictor = found["spec"]["predictor"]
    (container,) = predictor["containers"]
    given = options([*of_docker("ENTRYPOINT"), *container["args"]])
    assert given.run == ["/mnt/models"], "where its storage initializer puts what STORAGE_URI names"
    assert container["name"] == "kserve-container"
    assert [one["containerPort"] for one in container["ports"]] == [given.port]
    assert predictor["timeout"] >= given.timeout
    for probe in probes(container):
        assert probe["port"] == given.port
        assert client.get(probe["path"]).status_code == 200
