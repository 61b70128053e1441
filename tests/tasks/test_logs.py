"""What a run tells while it trains: a line every few steps, and a tracker."""

from __future__ import annotations

import json

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from toys import Sentences, network

import zoo
from tasks import logs
from tasks.options import EngineOptions, UserError


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "toy", network)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_every_few_steps_a_line_with_their_mean(start, tmp_path):
    run, found = start(model=zoo.create("toy"), epochs=2, log_every=2), []
    step = run.train_step
    run.train_step = lambda *a: found.append(step(*a)) or found[-1]
    run.fit()
    rows = lines(tmp_path)
    assert [(row["step"], row["epoch"]) for row in rows] == [(2, 1), (4, 2), (6, 2)]
    for row in rows:
        pair = found[row["step"] - 2 : row["step"]]
        mean = sum(sums["loss"] for sums in pair) / sum(sums["units"] for sums in pair)
        assert row["train_loss"] == pytest.approx(mean, rel=1e-12)
        assert row["lr"] == run.rate(row["step"] - 1)


@pytest.mark.parametrize("torn", ["", '{"step": 5, "ep'])
def test_a_resumed_run_writes_the_same_lines(start, tmp_path, torn):
    """Stopped in step 5, after a checkpoint in step 4 amid three steps of a line; the process may have torn the last line."""
    options = {"epochs": 2, "log_every": 3, "checkpoint_every": 2}
    start(model=zoo.create("toy"), **options).fit()
    whole = lines(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    run = start(model=zoo.create("toy"), **options)
    step = run.train_step

    def dies(*arguments):
        if run.step == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    run.train_step = dies
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "epoch": 2}) + "\n" + torn)
    back = start(model=zoo.create("toy"), **options)
    back.restore()
    assert back.step == 5 - 1 + (back.step == 5)
    back.fit()
    assert lines(tmp_path) == whole


def test_a_tracker_gets_the_options_every_epoch_and_the_lines_between(start, tmp_path, monkeypatch):
    found = []

    class Fake(tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False
        main_process_only = False

        def __init__(self, run_name, **options):
            super().__init__()
            found.append(("begin", run_name, options))

        tracker = None

        def store_init_configuration(self, values):
            found.append(("options", values))

        def log(self, values, step=None, **_):
            found.append((step, values))

        def finish(self):
            found.append(("end",))

    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    run = start(Sentences(), zoo.create("toy"), epochs=2, log_every=2, tracker="wandb")
    run.fit()
    kind, project, options = found[0]
    assert (kind, project) == ("begin", "zooproof")
    assert options == {"name": tmp_path.name, "dir": str(tmp_path)}
    assert found[1][1]["lr"] == run.options.lr
    assert [row[0] for row in found[2:-1]] == [2, 3, 4, 6, 6]
    assert found[-1] == ("end",)
    history = {row["step"]: row for row in run.history}
    assert found[3][1]["valid_loss"] == history[3]["valid_loss"]
    assert found[2][1]["step_train_loss"] == lines(tmp_path)[0]["train_loss"]


def test_a_tracker_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.AIM])
    for name in ("wandb", "weights and biases"):
        with pytest.raises(UserError, match=f"--tracker must be auto, none or one that is installed here, aim, got {name}"):
            logs.tracker(EngineOptions(tracker=name))
    assert logs.tracker(EngineOptions(tracker="none")) is None
    assert logs.tracker(EngineOptions(tracker="aim")) == "aim"
