"""torchmetrics' distance beside ours: measured where all that it needs is there, else a line says what is missing."""

from __future__ import annotations

import hashlib
import sys
from types import SimpleNamespace

import pytest
import torch

from tasks import inception_distance
from tasks.image_measures import frechet_distance

CPU = torch.device("cpu")


class Corners(torch.nn.Module):
    """In place of Inception: the sums of the corners of uint8 (n, 3, y, x)."""

    num_features = 3

    def forward(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return images[:, :, ::7, ::7].float().sum((2, 3)) / 255 * torch.tensor([1.0, 2.0, 3.0])


def drawn(channels, seed, count=70):
    return torch.randint(256, (count, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_images_are_measured_each_on_its_side(channels):
    """In parts, of which the last is smaller; grey as three equal channels."""
    pytest.importorskip("torchmetrics.image.fid")
    real, made, look = drawn(channels, 0), drawn(channels, 1, 67) // 2, Corners()
    features = (look(x.expand(-1, 3, -1, -1)).double() for x in (real, made))
    found = inception_distance.distance(real, made, CPU, feature=look)
    assert found == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert found > 2


@pytest.fixture
def fidelity(monkeypatch, tmp_path):
    """torch-fidelity, as far as it is asked here, and the file of weights that it would have fetched."""
    content = b"weights"
    name = f"weights-inception-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    known = {module: SimpleNamespace(URL_INCEPTION_V3=f"https://there/{name}") for module in inception_distance.MODULES}
    monkeypatch.setattr(inception_distance, "importlib", SimpleNamespace(import_module=known.__getitem__))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("a download"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes(content)
    return tmp_path / "checkpoints" / name


def test_the_weights_are_those_that_are_there(fidelity):
    assert inception_distance.installed() == {"feature_extractor_weights_path": str(fidelity)}


def test_weights_that_are_missing_or_damaged_are_told_and_not_fetched(fidelity):
    fidelity.write_bytes(b"half")
    left_out = "torchmetrics' Frechet inception distance is left out: "
    damaged = f"{fidelity} is damaged: its SHA-256 begins with {hashlib.sha256(b'half').hexdigest()[:8]}"
    assert inception_distance.told(drawn(1, 0), drawn(1, 1), CPU) == left_out + damaged
    fidelity.unlink()
    assert inception_distance.told(drawn(1, 0), drawn(1, 1), CPU) == f"{left_out}there is no {fidelity}"


@pytest.mark.parametrize("module", inception_distance.MODULES)
def test_a_library_that_is_not_installed_is_told(monkeypatch, module):
    for name in inception_distance.MODULES:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, None)
    assert f"is left out: import of {module} halted" in inception_distance.told(drawn(1, 0), drawn(1, 1), CPU)
