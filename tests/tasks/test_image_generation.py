"""The command `tasks.image_generation`: it learns, resumes, makes images, fills in, measures, and complains in one line."""

from __future__ import annotations

import shutil

import pytest
import torch
from command import one_line, rows
from PIL import Image

import zoo
from tasks import generation_task, image_classification, inception_distance
from tasks.data import spread
from tasks.data.images import load_images
from tasks.generators import GENERATORS, Adversarial, as_bytes, as_values
from tasks.image_generation import TrainOptions, begin, main
from tasks.judge import MANY, Judge
from zoo import files

COUNT = 80
"""Images to measure, in place of hundreds."""


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_task, "WATCHED", COUNT)
        patch.setattr(generation_task, "MEASURED", COUNT)
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory, digits):
    """A few digits as files, classifiers to measure with, and runs of a flow with classes and of a diffusion without."""
    folder = tmp_path_factory.mktemp("generators")
    for split, count in (("train", 8), ("valid", 2), ("test", 2)):
        images = digits.splits[split]
        for label in range(10):
            place = folder / "few" / split / str(label)
            place.mkdir(parents=True)
            for n, pixels in enumerate(images.pixels[images.labels == label][:count]):
                Image.fromarray(pixels[0].numpy()).save(place / f"{n}.png")
    for name, data in (("judge-few-8", f"folder:{folder / 'few'}"), ("judge-digits-8", "digits")):
        common = ["--data", data, "--image_size", "8", "--runs_dir", str(folder), "--device", "cpu", "--tracker", "none"]
        assert image_classification.main(["train", *common, "--model", "resnet20", "--epochs", "2", "--name", name]) == 0
    assert main(words(folder, folder, "--name", "flow", "--epochs", "2", "--label_dropout", "0.1")) == 0
    assert main(words(folder, folder, "--name", "ddpm", "--model", "ddpm", "--unconditional", "--steps", "3")) == 0
    return folder


def words(here, folder, *more):
    data = ["--data", f"folder:{here / 'few'}", "--image_size", "8", "--batch_size", "40"]
    small = ["--passes", "1", "--epochs", "1", "--steps", "2", "--lr", "0.001"]
    return ["train", *data, "--runs_dir", str(folder), "--device", "cpu", "--tracker", "none", *small, *more]


def in_one_step(words):
    """Without --steps and its value, for models that have none."""
    return [word for n, word in enumerate(words) if "--steps" not in words[max(0, n - 1) : n + 1]]


def use(command, folder, name, *more):
    return [command, "--runs_dir", str(folder), "--name", name, "--device", "cpu", *map(str, more)]


def size(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_images("digits", tmp_path_factory.mktemp("none"), 8)


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_a_run_learns_and_leaves_what_there_is_to_see(here, name):
    folder = here / name
    summary = files.read_json(folder / "summary.json")
    figures = {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}
    assert {f"{kind}_{figure}" for kind in ("test", "real") for figure in figures} < summary.keys()
    assert ("test_accuracy" in summary) == (name == "flow")
    assert summary["judge"] == str(here / "judge-few-8")
    assert summary["real_frechet_distance"] < summary["test_frechet_distance"]
    if name == "flow":
        first, last = rows(folder)
        assert last["train_loss"] < first["train_loss"]
    left = {path.name for path in folder.iterdir()}
    assert {"samples.png", "neighbours.png", "curves.png", "index.html", "best.safetensors"} <= left
    config = files.read_json(folder / "config.json")
    assert config["generation"]["schedule"] == ("flow" if name == "flow" else "linear")
    assert config["classes"] == ([str(n) for n in range(10)] if name == "flow" else [])
    assert config["image"] == [3, 8, 8]


@pytest.mark.parametrize("model", sorted(GENERATORS.keys() - {"flow", "ddpm"}))
def test_every_kind_learns_and_makes_images(here, tmp_path, capsys, model):
    """Both parts of those that compete move; a killed run of theirs goes on to the same bits, as every run of several parts."""
    shutil.copytree(here / "judge-few-8", tmp_path / "judge-few-8")
    data = words(here, tmp_path, "--model", model, "--name", "a")
    data = in_one_step(data)
    assert main([*data, "--epochs", "2"]) == 0
    first, last = rows(tmp_path / "a")
    if isinstance(GENERATORS[model], Adversarial):
        assert {"train_discriminator_loss", "train_generator_loss", "train_real_logits"} < last.keys()
    else:
        assert last["train_loss"] < first["train_loss"]
    summary = files.read_json(tmp_path / "a" / "summary.json")
    assert ("test_accuracy" in summary) == (model != "vae")
    out = tmp_path / "out.png"
    assert main(use("sample", tmp_path, "a", "--count", 2, "--out", out, "--interpolate")) == 0
    assert size(out)[1] == (2 if model == "vae" else 10) * 50 // (2 if model == "vae" else 1) + 2
    assert main(use("evaluate", tmp_path, "a")) == 0
    assert f"{COUNT} images" in capsys.readouterr().out
    if model != "dit":
        assert "steps must be left out" in one_line(capsys, main, *use("sample", tmp_path, "a", "--steps", 3))
        assert "--film is for models" in one_line(capsys, main, *use("sample", tmp_path, "a", "--film", tmp_path / "a.gif"))
        assert "--compile is for models" in one_line(capsys, main, *use("sample", tmp_path, "a", "--compile"))


def test_sheets_and_films(here, tmp_path, capsys):
    out, film = tmp_path / "out.png", tmp_path / "film.gif"
    assert main([*use("sample", here, "flow", "--classes", "0-2,7", "--count", 3, "--out", out, "--film", film)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 12 images of 0, 1, 2, 7\n")
    assert size(out) == (3 * 50 + 2, 4 * 50 + 2)
    with Image.open(film) as opened:
        assert opened.n_frames == 3
        assert opened.size == size(out)
    first = out.read_bytes()
    for more, same in (((), True), (("--seed", 1), False), (("--steps", 3), False), (("--guidance", 2), False)):
        again = tmp_path / "again.png"
        assert main([*use("sample", here, "flow", "--classes", "0-2,7", "--count", 3, "--out", again, *more)]) == 0
        assert (again.read_bytes() == first) == same, more
    assert main([*use("sample", here, "ddpm", "--count", 20, "--out", out, "--neighbours", "--interpolate")]) == 0
    assert size(out) == (10 * 50 + 2, 4 * 50 + 2)
    assert "0 of 20 images are copies" in capsys.readouterr().out


def test_films_end_with_the_sheet_and_begin_with_noise(here, tmp_path):
    out, film = tmp_path / "out.png", tmp_path / "film.webp"
    assert main([*use("sample", here, "flow", "--classes", "3", "--count", 2, "--out", out, "--film", film)]) == 0
    with Image.open(film) as opened, Image.open(out) as sheet:
        opened.seek(2)
        assert opened.convert("RGB").tobytes() == sheet.tobytes()
        opened.seek(0)
        assert opened.convert("RGB").tobytes() != sheet.tobytes()


def test_a_compiled_network_makes_the_same_images(here, tmp_path, monkeypatch, digits):
    """But for the compiler: what it makes of a network is held against the model by `test_compiled_diffusion`."""
    made = []
    monkeypatch.setattr(zoo, "optimize", lambda model, example, dtype: made.append((*example.shape, dtype)) or model)
    picture = tmp_path / "image.png"
    Image.fromarray(digits.test.pixels[torch.arange(1)][0, 0].numpy()).save(picture)
    commands = {
        "sample": ["--classes", "3", "--count", 2, "--film", tmp_path / "film.gif"],
        "inpaint": ["--image", picture, "--mask", mask_of(tmp_path), "--count", 5],
    }
    for command, words in commands.items():
        found = []
        for more in ([], ["--compile"]):
            out = tmp_path / "out.png"
            assert main([*use(command, here, "flow", "--out", out, *words, *more)]) == 0
            found.append(out.read_bytes())
        assert found[0] == found[1]
    assert made == [(2, 3, 8, 8, None), (5, 3, 8, 8, None)]


def mask_of(folder):
    """The lower half is missing."""
    pixels = torch.zeros(8, 8, dtype=torch.uint8)
    pixels[4:] = 255
    Image.fromarray(pixels.numpy()).save(folder / "mask.png")
    return folder / "mask.png"


def test_what_is_known_of_a_picture_stays(here, tmp_path, digits):
    image = digits.test.pixels[torch.arange(1)][0]
    Image.fromarray(image[0].numpy()).save(tmp_path / "image.png")
    given = ["--image", tmp_path / "image.png", "--mask", mask_of(tmp_path), "--out", tmp_path / "out.png"]
    for name, more in (("flow", ("--label", "3")), ("flow", ()), ("ddpm", ())):
        assert main([*use("inpaint", here, name, *given, "--count", 12, *more)]) == 0
        assert size(tmp_path / "out.png") == (10 * 50 + 2, 3 * 50 + 2)


def test_a_flow_learns_twice_as_fast_by_muon_alone(tmp_path):
    """The other rate was measured with Muon."""
    asked = (("flow", None), ("flow", "adamw"), ("flow", "sgd"), ("ddpm", None), ("r3gan", None), ("dcgan", None))
    found = [TrainOptions(runs_dir=str(tmp_path), model=model, optimizer=optimizer).lr for model, optimizer in asked]
    assert found == [0.004, 0.002, 0.002, 0.002, 0.002, 0.0005]
    assert TrainOptions(runs_dir=str(tmp_path), optimizer="adamw", lr=0.004).lr == 0.004


def test_a_network_that_saw_every_label_is_asked_for_classes_alone(here, tmp_path, capsys):
    """As it is trained without --guidance."""
    assert [TrainOptions(runs_dir=str(here), guidance=x).label_dropout for x in (None, 1.0, 2.5)] == [0.0, 0.0, 0.1]
    shutil.copytree(here / "flow", tmp_path / "flow")
    config = files.read_json(tmp_path / "flow" / "config.json")
    assert config["generation"].pop("hidden") == 0.1
    files.write_json(tmp_path / "flow" / "config.json", config)  # as versions before wrote it
    guided = use("sample", tmp_path, "flow", "--guidance", 2, "--out", tmp_path / "out.png")
    assert main(guided) == 0
    config["generation"]["hidden"] = 0.0
    files.write_json(tmp_path / "flow" / "config.json", config)
    capsys.readouterr()
    assert "guidance must be 1 for a network that was trained with every label, got 2.0" in one_line(capsys, main, *guided)
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    given = ["--image", tmp_path / "image.png", "--mask", mask_of(tmp_path), "--out", tmp_path / "out.png"]
    assert "--label: give a class of the picture" in one_line(capsys, main, *use("inpaint", tmp_path, "flow", *given))
    assert main(use("inpaint", tmp_path, "flow", *given, "--label", "3")) == 0


def test_measuring_again(here, capsys, monkeypatch):
    """The distance of torchmetrics is asked for the same images."""
    asked = []
    monkeypatch.setattr(inception_distance, "told", lambda *given: asked.append(given) or "torchmetrics' distance")
    assert main([*use("evaluate", here, "flow")]) == 0
    said = capsys.readouterr().out
    assert f"{here / 'flow'}, {COUNT} images by 2 steps of heun: frechet distance " in said
    assert "accuracy" in said
    assert said.endswith("\ntorchmetrics' distance\n")
    ((real, made, device),) = asked
    assert real.shape == made.shape == (COUNT, 3, 8, 8)
    assert real.dtype == made.dtype == torch.uint8
    assert not torch.equal(real, made)
    assert device.type == "cpu"
    assert main([*use("evaluate", here, "ddpm", "--sampler", "ddim", "--steps", 5, "--judge", "judge-few-8")]) == 0
    said = capsys.readouterr().out
    assert "5 steps of ddim" in said
    assert "accuracy" not in said


def test_the_judge_tells_blurred_and_noisy_pictures_from_real_ones(here, digits):
    """And real ones of another split are the nearest that anything comes; so are their labels."""
    judge = Judge(here / "judge-digits-8", digits)
    real, test = judge.look(digits.train.pixels[spread(len(digits.train), 500)]), digits.test.pixels[torch.arange(150)]
    assert judge.look(digits.train.pixels[spread(len(digits.train), 2000)]).features.var(0).mean() == pytest.approx(1, rel=1e-4)
    kernel = torch.ones(1, 1, 3, 3) / 9
    blurred = torch.nn.functional.conv2d(test.float(), kernel, padding=1).round().to(torch.uint8)
    noisy = torch.randint(256, test.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    floor, soft, random = (judge.measure(real, images, digits.test.labels[:150]) for images in (test, blurred, noisy))
    for worse in (soft, random):
        for name in ("frechet_distance", "kernel_distance"):
            assert worse[name] > 2 * floor[name], name
        for name in ("coverage", "accuracy"):
            assert worse[name] < floor[name], name
    ones = test[digits.test.labels[:150] == 1].repeat(10, 1, 1, 1)[:150]
    assert judge.measure(real, ones, None)["coverage"] < floor["coverage"] / 2


def test_a_batch_is_a_function_of_seed_epoch_and_image(here):
    options = TrainOptions(runs_dir=str(here), passes=2, batch_size=100, label_dropout=0.5, flip=True)
    task, _ = begin(options, here / "none")
    batches = task.train.batches(3)
    order = torch.cat(list(batches))
    assert torch.equal(order.sort().values, torch.arange(2 * 1439))
    whole = task.train.batch(batches[0], 3)
    part = task.train.batch(batches[0][7:9], 3)
    assert all(torch.equal(x[7:9], y) for x, y in zip(whole, part, strict=True))
    same = torch.tensor([5])
    others = [(same, 3), (same + 1439, 3), (same, 4)]
    noises = [task.train.batch(*place)[2] for place in others] + [task.valid.batch(same, 3)[2]]
    assert len({tuple(x.flatten().tolist()) for x in noises}) == 4
    assert torch.equal(task.valid.batch(same, 3)[2], task.valid.batch(same, 8)[2])
    images, labels, noise, times = task.train.batch(order, 0)
    hidden = (labels == 10).float().mean()
    assert 0.45 < hidden < 0.55
    kept = labels != 10
    assert torch.equal(labels[kept], task.data.train.labels[(order % 1439)[kept]])
    own = as_values(task.data.train.pixels[order % 1439])
    flipped = (images == own.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped | (images == own).flatten(1).all(1), torch.ones(len(order), dtype=torch.bool))
    assert 0.4 < flipped.float().mean() < 0.6
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert 0 < times.min() < times.max() <= 1000
    assert torch.equal(as_bytes(images), as_bytes(as_values(as_bytes(images))))


@pytest.mark.parametrize("passes", [0.4, 1.0, 2.5])
def test_epochs_of_a_part_of_a_pass_go_on_where_the_last_one_stopped(here, passes):
    """So that all images are looked at as often, but for one look."""
    task, _ = begin(TrainOptions(runs_dir=str(here), passes=passes, batch_size=100), here / "none")
    epochs = [torch.cat(list(task.train.batches(n))) for n in range(4)]
    assert {len(order) for order in epochs} == {round(1439 * passes)}
    assert all(len(set(order.tolist())) == len(order) for order in epochs)  # of which each look draws its own noise
    looks = torch.bincount(torch.cat(epochs) % 1439, minlength=1439)
    assert looks.max() - looks.min() <= 1


def test_a_stopped_run_goes_on_to_the_same_bits(here, tmp_path):
    """After an epoch, and between two checkpoints of one."""
    shutil.copytree(here / "judge-few-8", tmp_path / "judge-few-8")
    data = words(here, tmp_path, "--epochs", "2", "--label_dropout", "0.1", "--checkpoint_every", "1", "--name", "a")
    calls = []

    def stopping(run, *given, original=zoo.save):
        original(run, *given)
        calls.append(run)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "save", stopping)
        assert main(data) == 130
    assert main([*data, "--resume"]) == 0
    for name in ("last", "best"):
        one, other = (files.read_tensors(folder / f"{name}.safetensors") for folder in (here / "flow", tmp_path / "a"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    summaries = [files.read_json(folder / "summary.json") for folder in (here / "flow", tmp_path / "a")]
    for summary in summaries:
        for key in [key for key in summary if "second" in key or key == "judge"]:
            del summary[key]
    assert summaries[0] == summaries[1]


@pytest.mark.processes
def test_two_processes_give_the_metrics_of_one(here, tmp_path, launch):
    """Not started by torchrun, as `test_resume` has it: three more processes that import torch."""
    shutil.copytree(here / "judge-few-8", tmp_path / "judge-few-8")
    done = launch(*words(here, tmp_path, "--name", "two"), task="tasks.image_generation", ranks=2)
    assert done.returncode == 0, done.stderr
    assert main(words(here, tmp_path, "--name", "one")) == 0
    (one,), (two,) = rows(tmp_path / "one"), rows(tmp_path / "two")
    for name in ("train_loss", "valid_loss"):
        assert two[name] == pytest.approx(one[name], rel=2e-5)


@pytest.mark.processes
def test_two_processes_that_call_methods_of_their_model_give_the_metrics_of_one(here, tmp_path, launch):
    """Of a VAE, which is its encoder and its decoder."""
    shutil.copytree(here / "judge-few-8", tmp_path / "judge-few-8")
    one, two = (in_one_step(words(here, tmp_path, "--name", name, "--model", "vae")) for name in ("one", "two"))
    done = launch(*two, task="tasks.image_generation", ranks=2)
    assert done.returncode == 0, done.stderr
    assert main(one) == 0
    (one,), (two,) = rows(tmp_path / "one"), rows(tmp_path / "two")
    for name in ("train_loss", "valid_loss"):
        assert two[name] == pytest.approx(one[name], rel=2e-5)


@pytest.mark.processes
def test_the_judge_is_trained_where_there_is_none(make_pictures, tmp_path, capsys):
    make_pictures(tmp_path / "pictures" / "train", {"dark": 7, "light": 6}, size=8)
    make_pictures(tmp_path / "pictures" / "test", {"dark": 4, "light": 4}, size=8, seed=1)
    data = ["--data", f"folder:{tmp_path / 'pictures'}", "--batch_size", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.judge.LOOKS", 13)
        assert main([*words(tmp_path, tmp_path / "runs"), *data, "--name", "a"]) == 0
    said = capsys.readouterr().out
    assert (
        f"a classifier to measure with is trained first, {tmp_path / 'runs' / 'judge-pictures-8'}: 2 epochs of 13 images" in said
    )
    assert files.read_json(tmp_path / "runs" / "a" / "summary.json")["judge"] == str(tmp_path / "runs" / "judge-pictures-8")
    learned = files.read_json(tmp_path / "runs" / "judge-pictures-8" / "options.json")
    assert {name: learned[name] for name in MANY} == MANY
    make_pictures(tmp_path / "pictures" / "train" / "more", {"dark": 1}, size=8, seed=9)
    shutil.move(tmp_path / "pictures" / "train" / "more" / "dark" / "00.png", tmp_path / "pictures" / "train" / "dark" / "99.png")
    shutil.rmtree(tmp_path / "pictures" / "train" / "more")
    error = one_line(capsys, main, *words(tmp_path, tmp_path / "runs"), *data, "--name", "b")
    assert "judge-pictures-8 was trained on other images" in error
    assert not (tmp_path / "runs" / "b").exists()


def test_falling_coverage_is_told(here, capsys):
    task, model = begin(TrainOptions(runs_dir=str(here), steps=2, data=f"folder:{here / 'few'}", image_size=8), here / "none")
    task.score(model.eval())
    assert "coverage has fallen" not in capsys.readouterr().out
    task.most_covered = 1.0
    task.score(model)
    assert "coverage has fallen from 1.00 to 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--model", "flw"], "--model flw is unknown, did you mean flow?; there are flow, ddpm, dit, dcgan"),
        (["--image_size", "9"], "--image_size must be a multiple of 2 for unet_small, such as 8, got 9"),
        (["--steps", "1001"], "steps must be at most the 1000 that were trained, got 1001"),
        (["--unconditional", "--guidance", "2"], "guidance must be 1 where there are no classes, got 2.0"),
        (
            ["--model", "dcgan", "--optimizer", "sgd"],
            "--optimizer of dcgan must be adamw, with decays that suit a contest, got sgd",
        ),
        (["--sampler", "eulr"], "--sampler must be one of ddpm, ddim, dpm++, euler, heun, got 'eulr', did you mean euler?"),
        (["--judge", "flow"], "flow is a run of tasks.image_generation, not of tasks.image_classification"),
        (["--judge", "nowhere"], "nowhere is no finished run of tasks.image_classification"),
        (["--data", "digit"], "did you mean 'digits'?"),
    ],
)
def test_what_training_refuses(here, capsys, more, error):
    assert error in one_line(capsys, main, *words(here, here, "--name", "new", *more))
    assert not (here / "new").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("sample", "flow", "--classes", "0-10"), "--classes 0-10: classes are numbered from 0 to 9"),
        (("sample", "flow", "--classes", "cat"), "--classes 'cat' is no class; there are 0, 1, 2"),
        (("sample", "ddpm", "--classes", "1"), "--classes 1: the model was trained without classes"),
        (("sample", "flow", "--steps", "1001"), "steps must be at most the 1000 that were trained, got 1001"),
        (("sample", "ddpm", "--guidance", "2"), "guidance must be 1 where there are no classes, got 2.0"),
        (("sample", "flow", "--out", "a.jpg"), "--out must end in .png, got a.jpg"),
        (("sample", "flow", "--film", "a.mp4"), "--film must end in .gif or .webp, got a.mp4"),
        (("inpaint", "flow"), "--image: give a picture, got 'none'"),
        (("sample", "judge-digits-8"), "is a run of tasks.image_classification, not of tasks.image_generation"),
    ],
)
def test_what_the_other_commands_refuse(here, capsys, monkeypatch, tmp_path, words, error):
    monkeypatch.chdir(tmp_path)
    command, name, *more = words
    assert error in one_line(capsys, main, *use(command, here, name, *more))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prediction": "score"}, "prediction must be one of epsilon, sample, velocity, got 'score'"),
        ({"schedule": "square"}, "schedule must be one of flow, linear, cosine, zero_terminal, got 'square'"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_model_of_something_unknown(here, tmp_path, capsys, change, error):
    shutil.copytree(here / "flow", tmp_path / "runs" / "flow")
    config = files.read_json(tmp_path / "runs" / "flow" / "config.json")
    files.write_json(tmp_path / "runs" / "flow" / "config.json", config | {"generation": config["generation"] | change})
    assert error in one_line(capsys, main, *use("sample", tmp_path / "runs", "flow"))


def test_too_few_pictures_to_train_on(make_pictures, tmp_path, capsys):
    make_pictures(tmp_path / "few" / "train", {"dark": 3, "light": 2}, size=8)
    make_pictures(tmp_path / "few" / "test", {"dark": 2, "light": 2}, size=8, seed=1)
    error = one_line(capsys, main, *words(tmp_path, tmp_path / "runs", "--name", "a"))
    assert "must have more than 5 training images, got 5" in error
    assert not (tmp_path / "runs").exists()
