import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tasks.data.images import RandomView


@pytest.mark.parametrize("kind", ["pillow", "tensor"])
@pytest.mark.parametrize(
    ("width", "height", "scale"), [(50, 37, (0.08, 1.0)), (90, 9, (0.9, 1.0)), (9, 90, (0.9, 1.0))]
)
def test_the_random_part_is_that_of_torchvisions_transform(kind, width, height, scale):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))
    if kind == "tensor":
        image = v2.functional.pil_to_tensor(image)
    reference = v2.RandomResizedCrop(12, scale=scale, antialias=True)
    view = RandomView(12, scale)
    mirrored = 0
    for seed in range(30):
        torch.manual_seed(seed)
        expected = reference(image)
        torch.manual_seed(seed)
        found = view(image)
        expected, found = (np.asarray(x) if kind == "pillow" else x.numpy() for x in (expected, found))
        flipped = np.flip(expected, axis=1 if kind == "pillow" else 2)
        assert np.array_equal(found, expected) or np.array_equal(found, flipped)
        mirrored += not np.array_equal(found, expected)
    assert 0 < mirrored < 30
