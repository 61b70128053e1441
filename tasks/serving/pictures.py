"""Pictures that are classified and explained, and pictures that are made, as a server reads and answers them."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.options import UserError
from tasks.serving import schemas
from tasks.serving.models import BadInput, Served, shown
from tasks.serving.schemas import Schema

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

MOST = 100
"""Images that an input asks for at most."""
BASE64 = {"contentEncoding": "base64", "contentMediaType": "image/png"}
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
"""A black pixel, as a PNG file in base64."""


class Picture(NamedTuple):
    """pixels: uint8 (c, y, x), as the model takes them. explained: whether it is asked what speaks for its class."""

    pixels: Tensor
    explained: bool = False


class Pictures(Served):
    task = "image-classification"
    takes = "a picture in base64"
    example = DOT
    explains = True
    tensors = ("image",)

    def load(self) -> None:
        from tasks.data.picture_files import Budget
        from tasks.image_predictions import PredictOptions, load_classifier

        options = self.options(PredictOptions)
        self.model, self.context, self.preprocess, self.classes = load_classifier(self.folder, options)
        self.budget, self.top = Budget(strict=True), options.top

    def about(self) -> dict[str, Any]:
        return {"classes": self.classes, "image_size": self.preprocess.image_size, "channels": self.preprocess.channels}

    def schemas(self) -> tuple[Schema, Schema]:
        why = "a picture, PNG, JPEG, GIF, BMP, WebP or TIFF, in base64 or as a data: URL"
        told = {"label": schemas.one_of(*self.classes), "scores": schemas.by_class(self.classes)}
        return schemas.text(description=why, contentEncoding="base64"), schemas.made_of(told)

    def explained_schema(self) -> Schema:
        grid = schemas.listed(schemas.listed(schemas.number(minimum=0)), description="logits")
        seen = schemas.text(description="the picture as the model takes it", **BASE64)
        told = self.schemas()[1]["properties"]
        return schemas.made_of({**told, "activation": grid, "seen": seen})

    def read(self, value: Any) -> Picture:
        from tasks.data import DataError
        from tasks.data.picture_files import quiet
        from tasks.data.pictures import read_pixels

        if isinstance(value, str):
            try:
                value = base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
            except (binascii.Error, ValueError):
                raise BadInput("an input must be a picture in base64, got something else") from None
        if not isinstance(value, bytes):
            raise BadInput(f"an input must be {self.takes}, got {shown(value)}")
        try:
            with quiet():
                return Picture(read_pixels(io.BytesIO(value), self.preprocess, self.budget))
        except DataError as error:
            raise BadInput(str(error)) from None

    def answer(self, items: Sequence[Picture]) -> list[Any]:
        import torch

        from tasks.image_scores import log_probabilities
        from tasks.text_classification_use import answers

        images = self.preprocess.normalise(torch.stack([one.pixels for one in items]))
        logs = log_probabilities(self.model, self.context, images)
        rows = answers(range(len(items)), logs.exp(), self.classes, min(self.top, len(self.classes)))
        found = [{key: row[key] for key in ("label", "scores")} for row in rows]
        asked = [n for n, one in enumerate(items) if one.explained]
        for n, map_ in zip(asked, self.activations(images[asked]) if asked else [], strict=True):
            found[n] |= {"activation": map_, "seen": in_base64(items[n].pixels)}
        return found

    def activations(self, images: Tensor) -> list[list[list[float]]]:
        from tasks.explain import class_activation

        device = next(self.model.parameters()).device
        with self.context:
            maps, *_ = class_activation(self.model, images.to(device))
        return [[[round(x, 6) for x in row] for row in one] for one in maps.float().cpu().tolist()]


class Asked(NamedTuple):
    """Images to make: how many, the class of each (n,) or None, rows and images in each of them; their noise is drawn late."""

    images: int
    labels: Tensor | None
    chosen: list[int]
    wide: int
    seed: int


class Images(Served):
    task = "image-generation"
    takes = 'an object with "classes", "count" and "seed", each of which may be left out'
    example = {"count": 2, "seed": 1}
    SETTINGS = ("classes", "count", "seed")

    def load(self) -> None:
        from tasks.image_generation_use import Loaded, SampleOptions

        self.found = Loaded(self.options(SampleOptions))

    def about(self) -> dict[str, Any]:
        return {"classes": self.found.classes, "shape": self.found.shape}

    def schemas(self) -> tuple[Schema, Schema]:
        from tasks.image_generation_use import SampleOptions

        settings = schemas.of_options(SampleOptions, self.SETTINGS)
        settings["count"] |= {"maximum": MOST, "default": self.usual}
        settings["classes"] |= {"maxLength": self.text}
        rows = schemas.listed(schemas.text(), description="the class of each row, if the model knows any")
        told = {"sheet": schemas.text(**BASE64), "images": schemas.integer(minimum=1), "rows": rows}
        return schemas.made_of(
            settings, self.SETTINGS, description=f"at most {MOST} images, count of each class"
        ), schemas.made_of(told)

    @property
    def usual(self) -> int:
        """Images of each class where nobody says."""
        return max(1, min(10, MOST // (len(self.found.classes) or 10)))

    def read(self, value: Any) -> Asked:
        import torch

        from tasks.image_generation_use import SampleOptions, layout

        if not isinstance(value, dict):
            raise BadInput(f"an input must be {self.takes}, got {shown(value)}")
        if unknown := sorted({*value} - {*self.SETTINGS}):
            raise BadInput(f"{unknown[0]!r} is no setting: there are {', '.join(self.SETTINGS)}")
        given: dict[str, Any] = {"count": self.usual} | value
        self.string(given.get("classes", ""), "classes")
        try:
            options = SampleOptions(**given)
            chosen, rows, wide = layout(self.found.classes, options.classes, options.count)
        except UserError as error:
            raise BadInput(str(error).removeprefix("--")) from None
        if rows * wide > MOST:
            raise BadInput(f"classes and count ask for {rows * wide:,} images, at most {MOST} are made")
        labels = torch.tensor(chosen).repeat_interleave(wide) if chosen else None
        return Asked(rows * wide, labels, chosen, wide, options.seed)

    def from_tensors(self, *strings: str) -> Any:
        return {"classes": strings[0]}

    def answer(self, items: Sequence[Asked]) -> list[Any]:
        """Together, unless a sampler draws further noise: then each has a seed of its own."""
        import torch

        from tasks import sheets

        noise = [self.found.noise(one.images, one.seed) for one in items]
        if getattr(self.found.generator, "sampler", "") == "ddpm":
            made = [self.found.pictures(x, one.labels, one.seed) for x, one in zip(noise, items, strict=True)]
        else:
            labels = [one.labels for one in items if one.labels is not None]
            whole = self.found.pictures(torch.cat(noise), torch.cat(labels) if labels else None, 0)
            made = whole.split([one.images for one in items])
        return [
            {"sheet": in_base64(sheets.grid(images.split(one.wide))), "images": len(images),
             "rows": [self.found.classes[n] for n in one.chosen]}
            for one, images in zip(items, made, strict=True)
        ]  # fmt: skip


def in_base64(pixels: Tensor) -> str:
    """uint8 (c, y, x) as a PNG file."""
    from tasks import sheets

    return base64.b64encode(sheets.png(pixels)).decode()
