from __future__ import annotations

import torch
from PIL import Image

from tasks import sheets


def test_sheets_keep_every_pixel(tmp_path):
    """Enlarged by a whole factor, on white."""
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    sheets.write(tmp_path / "a.png", [images, images[:1]])
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == (2 * 50 + 2, 2 * 50 + 2)
        pixels = torch.frombuffer(bytearray(opened.tobytes()), dtype=torch.uint8).view(102, 102, 3).permute(2, 0, 1)
    for place, image in (((2, 2), images[0]), ((2, 52), images[1]), ((52, 2), images[0])):
        y, x = place
        assert torch.equal(pixels[:, y : y + 48 : 12, x : x + 48 : 12], image)
    assert (pixels[:, 52:, 52:] == 255).all()
