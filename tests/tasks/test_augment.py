"""What training makes of images: pure functions of seed, epoch and index, equal to torchvision's under the same seeds."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial

import command
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from tasks.data import seed_of
from tasks.data.augment import WARPS, Augmented, Warp, split_names, warp
from tasks.data.images import Images

complaint = partial(command.complaint, split_names)
ALONE = [*WARPS, "crop", "randaugment", "trivialaugment", "crop,randaugment", "affine,trivialaugment", "erasing"]
WAYS = [*ALONE, "mixup", "cutmix", "mixed"]


def augmented(images: Images, name: str, seed: int = 0) -> Augmented:
    options: dict = {
        "erasing": dict(erasing=0.9),
        "mixup": dict(mixup=0.8),
        "cutmix": dict(cutmix=1.0),
        "mixed": dict(augment="crop,randaugment", erasing=0.5, mixup=0.4, cutmix=1.0),
    }
    return Augmented(images, seed=seed, **options.get(name, dict(augment=name)))


@pytest.fixture
def fifty() -> Images:
    pixels = torch.randint(0, 256, (50, 3, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, torch.arange(50) % 7, torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))


@pytest.mark.parametrize("name", WAYS)
def test_a_sample_looks_the_same_in_every_batch(fifty, name):
    """To the bit: whatever its companions, their number and order, the threads, and what was drawn before."""
    train = augmented(fifty, name, seed=3)
    whole, *labels = train(torch.arange(50), 5)
    draw, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    try:
        for n, size in enumerate([*range(1, 18), 31, 64]):
            torch.set_num_threads(1 + n % 3)
            torch.manual_seed(n)
            indices = torch.randint(50, (size,), generator=draw)
            state = torch.get_rng_state()
            images, *of = train(indices, 5)
            assert torch.equal(images, whole[indices])
            assert all(torch.equal(a, b[indices]) for a, b in zip(of, labels, strict=True))
            assert torch.equal(state, torch.get_rng_state()), "a global random number was drawn"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ALONE)
def test_samples_epochs_and_seeds_differ(fifty, name):
    same = Images(fifty.pixels[:1].expand(50, -1, -1, -1), fifty.labels, fifty.mean, fifty.std)
    plain, _ = same.batch(torch.arange(50))
    batches = [augmented(same, name, s)(torch.arange(50), e)[0] for s, e in ((0, 0), (0, 1), (1, 0))]
    enough = 50 if name in WARPS else 20  # a policy may leave a sample as it is
    assert all(len(batch.unique(dim=0)) >= enough for batch in batches), "two samples had the same fate"
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert (batches[a] != batches[b]).flatten(1).any(1).sum() >= enough
    assert (batches[0] != plain).flatten(1).any(1).sum() >= enough


def test_without_augmentation_seed_and_epoch_do_not_matter(fifty):
    expected = (fifty.pixels.double() / 255 - fifty.mean.double()[:, None, None]) / fifty.std.double()[:, None, None]
    for images, _ in (fifty.batch(torch.arange(50)), Augmented(fifty, seed=1)(torch.arange(50), 2)):
        assert images.dtype == torch.float32
        torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_does_not_touch_the_data(fifty):
    before = fifty.pixels.clone()
    for name in ("none", *WAYS):
        augmented(fifty, name)(torch.arange(50), 0)[0].zero_()
    assert torch.equal(before, fifty.pixels)


def test_warp_is_the_affine_map_of_torch():
    """Against F.affine_grid: first mirror, then scale and turn, then shift, as seen from the output."""
    draw = torch.Generator().manual_seed(0)
    images, drawn = torch.rand(40, 2, 11, 11, generator=draw), torch.rand(40, 5, generator=draw)
    shift, degrees, scale = 0.2, 30.0, 0.25
    down, right, turn, grow, flip = (2 * drawn.double() - 1).unbind(1)
    angle, size, mirror = (turn * degrees).deg2rad(), 1 + scale * grow, torch.where(flip < 0, -1.0, 1.0)
    cos, sin = angle.cos() / size, angle.sin() / size
    rows = torch.stack([cos * mirror, sin * mirror, 2 * shift * right, -sin, cos, 2 * shift * down], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3).float(), list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(warp(images, drawn, Warp(shift, degrees, scale, flip=True)), expected)


def test_warp_moves_turns_and_mirrors():
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    still = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.9]])

    def warped(augmentation: Warp, **drawn: float) -> Tensor:
        numbers = still.clone()
        for name, value in drawn.items():
            numbers[0, ("down", "right", "turn", "grow", "flip").index(name)] = value
        return warp(images, numbers, augmentation)

    quarter = Warp(shift=0.25, rotation=90, flip=True)  # a quarter of 8 pixels is 2
    torch.testing.assert_close(warped(quarter), images)
    torch.testing.assert_close(warped(quarter, down=1.0), F.pad(images[..., 2:, :], (0, 0, 0, 2)))
    torch.testing.assert_close(warped(quarter, right=0.0), F.pad(images[..., :-2], (2, 0)))
    torch.testing.assert_close(warped(quarter, flip=0.1), images.flip(-1))
    torch.testing.assert_close(warped(Warp(), flip=0.1), images)
    turned = {turn: warped(quarter, turn=turn) for turn in (0.0, 1.0)}
    torch.testing.assert_close(turned[1.0], images.rot90(-1, (-2, -1)))
    torch.testing.assert_close(turned[0.0], images.rot90(1, (-2, -1)))


# ------------------------------------------------------------------------------------------------- torchvision's, by our seeds


@pytest.fixture(params=[1, 3])
def pictures(request) -> Images:
    pixels = torch.randint(0, 256, (6, request.param, 20, 20), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Images(pixels, torch.arange(6) % 3, torch.full((request.param,), 0.4), torch.full((request.param,), 0.25))


@pytest.mark.parametrize("name", ["crop", "randaugment", "trivialaugment", "crop,randaugment", "trivialaugment, crop"])
def test_it_is_torchvisions_transform_under_the_seed_of_the_sample(pictures, name):
    crop = [v2.RandomResizedCrop(20, antialias=True), v2.RandomHorizontalFlip()] if "crop" in name else []
    policy = [v2.RandAugment()] if "rand" in name else [v2.TrivialAugmentWide()] if "trivial" in name else []
    ours, _ = Augmented(pictures, name, seed=7)(torch.arange(6), 3)
    for n in range(6):
        torch.manual_seed(seed_of("augment", 7, 3, n))
        theirs = v2.Compose([*crop, *policy])(pictures.pixels[n])
        assert torch.equal(ours[n], replace(pictures, pixels=theirs[None]).batch(torch.tensor([0]))[0][0])


@pytest.mark.parametrize("probability", [0.5, 0.999])
def test_erasing_is_torchvisions_under_the_seed_of_the_sample(pictures, probability):
    plain = pictures.batch(torch.arange(6))[0]
    ours, _ = Augmented(pictures, erasing=probability, seed=7)(torch.arange(6), 3)
    for n in range(6):
        torch.manual_seed(seed_of("erasing", 7, 3, n))
        assert torch.equal(ours[n], v2.RandomErasing(probability)(plain[n]))
    assert not torch.equal(ours, plain)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixing_is_torchvisions_under_the_seed_of_the_sample(pictures, kind, alpha):
    """Images, and as cross entropy of a target of two classes the labels and shares."""
    train = Augmented(pictures, "affine", seed=7, **{kind: alpha})
    plain, _ = Augmented(pictures, "affine", seed=7)(torch.arange(6), 3)
    images, labels, partners, shares = train(torch.arange(6), 3)
    mixer = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind](alpha=alpha, num_classes=3)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for n in range(6):
        partner = train.drawn(n, 3).partner
        assert partners[n] == pictures.labels[partner]
        torch.manual_seed(seed_of("mix", 7, 3, n))
        theirs, targets = mixer(plain[[n, partner]], pictures.labels[[n, partner]])
        assert torch.equal(images[n], theirs[0])
        row = logits[n : n + 1]
        own, other = (F.cross_entropy(row, of[n : n + 1]) for of in (labels, partners))
        torch.testing.assert_close(shares[n] * own + (1 - shares[n]) * other, F.cross_entropy(row, targets[:1]))
    assert torch.equal(labels, pictures.labels)


def test_partners_come_from_the_whole_set_and_a_coin_chooses(fifty):
    train = Augmented(fifty, mixup=1.0, cutmix=1.0)
    drawn = [train.drawn(n, epoch) for n in range(50) for epoch in range(10)]
    assert {one.partner for one in drawn} == set(range(50))
    boxes = sum(one.box is not None for one in drawn)
    assert 200 < boxes < 300
    assert all(0 <= one.share <= 1 for one in drawn)
    only = {kind: Augmented(fifty, **{kind: 1.0}) for kind in ("mixup", "cutmix")}
    assert all((train.drawn(n, 0).box is None) == (kind == "mixup") for kind, train in only.items() for n in range(50))


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e6])
def test_any_alpha_gives_shares(fifty, alpha):
    for kind in ("mixup", "cutmix"):
        images, _, _, shares = Augmented(fifty, **{kind: alpha})(torch.arange(50), 0)
        assert images.isfinite().all()
        assert ((shares >= 0) & (shares <= 1)).all()


@pytest.mark.parametrize("alpha", [1e-50, 1e-7, 1e7, 1e308])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_other_alphas_are_refused(fifty, kind, alpha):
    assert command.complaint(Augmented, fifty, **{kind: alpha}).startswith(f"{kind} must be 0, or from 0.000001 to 1000000, got")


def test_batches_can_be_made_in_other_processes(fifty):
    train = augmented(fifty, "mixed")
    again = pickle.loads(pickle.dumps(train))
    assert all(torch.equal(a, b) for a, b in zip(train(torch.arange(9), 1), again(torch.arange(9), 1), strict=True))


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ("afine", ["did you mean affine"]),
        ("randaug", ["did you mean randaugment"]),
        ("", ["one of none, shift, flip, affine, crop"]),
        ("flip,affine", ["one of shift, flip, affine, crop and one of randaugment, trivialaugment"]),
        ("randaugment,trivialaugment", ["and one of"]),
        ("none,randaugment", ["or none"]),
        ("crop,crop", ["takes one of"]),
    ],
)
def test_combinations_without_sense_are_refused(augment, words):
    message = complaint(augment)
    assert repr(augment) in message
    assert all(word in message for word in words), message
