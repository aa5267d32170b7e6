"""Training views that decode what the crop needs: the crops of torchvision, and pixels near a whole decoding's."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tasks.base import InputError
from tasks.data import ImageFolderSet, UnreadableImageError
from tasks.data.images import INTERPOLATIONS, RandomView
from tasks.data.quick_view import quick_view
from tests.tasks.data.pictures import picture, write_image_folder


def stored(mode: str = "RGB", *, width: int = 320, height: int = 240, **options) -> bytes:
    file = io.BytesIO()
    noise = np.random.RandomState(0).normal(0, 6, (height, width, 3))
    pixels = (picture(3, width=width, height=height) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, **{"format": "JPEG", "quality": 90, **options})
    return file.getvalue()


def views(content: bytes, view: RandomView, *, num: int = 12):
    """Yield quick and whole views of the same random numbers, as floats."""
    for seed in range(num):
        both = []
        for make in (quick_view, lambda image, view: v2.functional.pil_to_tensor(view(image.convert("RGB")))):
            torch.manual_seed(seed), random.seed(seed)
            with Image.open(io.BytesIO(content)) as image:
                both.append(make(image, view).double())
        yield both


# At full scale the two resizers round differently in the last bit: at most 1, so at least 48 dB. A reduced scale
# filters in the cosine domain before the resampling; 30 dB is about what JPEG itself loses in such noise.
@pytest.mark.parametrize(("side", "largest", "decibels"), [(128, 1, 50), (40, 60, 30), (12, 60, 30)])
@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"progressive": True}], ids=["colour", "grey", "progressive"])
def test_quick_views_are_near_whole_decodings_of_the_same_crops(side, largest, decibels, options):
    errors = [quick - whole for quick, whole in views(stored(**options), RandomView(side, (0.08, 1.0)))]
    mean_square = torch.stack(errors).square().mean().item()
    assert max(error.abs().max().item() for error in errors) <= largest
    assert 10 * np.log10(255**2 / max(mean_square, 1e-9)) >= decibels
    assert abs(torch.stack(errors).mean().item()) < 0.3


@pytest.mark.parametrize("options", [{"format": "PNG", "quality": 0}, {"mode": "CMYK"}, {"format": "GIF"}])
def test_other_formats_are_decoded_whole(options):
    for quick, whole in views(stored(**options), RandomView(40, (0.08, 1.0)), num=3):
        assert torch.equal(quick, whole)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.5)])
def test_boxes_are_those_of_torchvision_for_the_same_random_numbers(scale):
    view, content = RandomView(32, scale), stored()
    with Image.open(io.BytesIO(content)) as image:
        for seed in range(200):
            torch.manual_seed(seed)
            box = view.draw_box(image)
            torch.manual_seed(seed)
            drawn = v2.RandomResizedCrop(32, scale=scale).make_params([image])
            assert box == tuple(drawn[key] for key in ("top", "left", "height", "width"))
        assert not hasattr(image, "_im") or image._im is None, "drawing a box must not decode"


def test_bicubic_views_are_near_too():
    view = RandomView(128, (0.08, 1.0), interpolation=INTERPOLATIONS["bicubic"])
    assert max((quick - whole).abs().max().item() for quick, whole in views(stored(), view)) <= 8


def test_a_quick_set_has_the_labels_and_nearly_the_pictures_of_a_full_one(tmp_path):
    root = str(write_image_folder(tmp_path, classes=2, train=3))
    full, quick = (ImageFolderSet(root, image_size=16, decode=how) for how in ("full", "quick"))
    for index in range(6):
        seen = []
        for data in (full, quick):
            torch.manual_seed(index), random.seed(index)
            seen.append(data.train_example(index))
        assert seen[0][1] == seen[1][1]
        assert (seen[0][0].int() - seen[1][0].int()).abs().max() <= 1
    assert quick.describe()["decode"] == "quick" and "decode" not in full.describe()
    assert torch.equal(full.eval_example(0)[0], quick.eval_example(0)[0])


@pytest.mark.parametrize("keep", [0, 30, 0.5], ids=["empty", "header", "half"])
def test_a_truncated_picture_is_unreadable(tmp_path, keep):
    root = write_image_folder(tmp_path, classes=1, train=1, val=1)
    path = next((root / "train").rglob("*.JPEG"))
    content = stored()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(UnreadableImageError, match="train_0000"):
        ImageFolderSet(str(root), name="small", mean=(0.5,) * 3, std=(0.2,) * 3, decode="quick").train_example(0)


def test_an_unknown_decoding_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.decode=half: must be one of full, quick"):
        ImageFolderSet(str(write_image_folder(tmp_path)), decode="half")
