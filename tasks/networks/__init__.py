"""Networks of the classification experiments: plain functions from the number of classes to a network.

Each takes `width`, a factor on every channel count: 1 is the published network, less is for small runs. All BatchNorm
scales start at 1, as in torchvision and in the code that the papers came with.
"""

from tasks.networks.efficientnet import efficientnet
from tasks.networks.mobile import mobilenetv2, shufflenetv2
from tasks.networks.resnet import ScaledResNet, resnet18, resnet50, resnet101, resnext50, resnext101
from tasks.networks.se_resnet import se_resnet50, se_resnet101

__all__ = [
    "ScaledResNet",
    "efficientnet",
    "mobilenetv2",
    "resnet18",
    "resnet50",
    "resnet101",
    "resnext50",
    "resnext101",
    "se_resnet50",
    "se_resnet101",
    "shufflenetv2",
]
