"""What the contracts of adversarial networks have in common: arguments, inputs, and one part of a model as a block."""

from __future__ import annotations

from hypothesis import strategies as st

import zoo
from layers.testing import Contract, initial_distribution, tensor, tokens


def part_of(part):
    """Function that builds one part of a model of the zoo."""

    def build(name, **arguments):
        return getattr(zoo.MODELS[name](**arguments), part)

    build.__name__ = part
    return build


COMMON = dict(  # hypothesis begins with what stands first: the case that shows most
    image_size=st.sampled_from([12, 6, 8]),
    in_channels=st.sampled_from([2, 1]),
    latent_dim=5,
    num_classes=st.sampled_from([3, None]),
    class_dim=4,
)


def latents(a):
    classes = {} if a.num_classes is None else dict(classes=tokens("batch", a.num_classes))
    return dict(latents=tensor("batch latent_dim", latent_dim=a.latent_dim), **classes)


def images(a):
    sizes = dict(channels=a.in_channels, height=a.image_size, width=a.image_size)
    classes = {} if a.num_classes is None else dict(classes=tokens("batch", a.num_classes))
    rows = st.integers(6, 11)  # of one logit each: of fewer, an error in float32 is luck
    return dict(images=tensor("batch channels height width", batch=rows, **sizes), **classes)


def contract(part, arguments, twin, **options):
    drawn = part == "generator"
    return Contract(
        part_of(part),
        arguments=arguments,
        inputs=latents if drawn else images,
        outputs=lambda a, s: ("batch", a.in_channels, a.image_size, a.image_size) if drawn else ("batch",),
        twins=[twin],
        holds=[initial_distribution({"*": "test_initial_values in tests/zoo/test_gan.py holds them to a law"})],
        without={"exercised": "it takes the arguments of the whole, some of which are of the other part"},
        model=True,
        **options,
    )


INVALID = [
    (dict(image_size=7), "image_size"), (dict(num_classes=0), "num_classes"), (dict(latent_dim=0), "latent_dim"),
    (dict(width=0), "width"), (dict(in_channels=0), "in_channels"), (dict(num_classes=2, class_dim=0), "class_dim"),
]  # fmt: skip
