"""Cross-bias robustness with ReBias: Biased-MNIST and 9-Class ImageNet (AdamP paper, section D.2, Table D.2)."""

from tasks.rebias.biased_mnist import BiasedMnist
from tasks.rebias.colours import COLOURS, assign_colours, bias_split, colour_digit
from tasks.rebias.hsic import hsic_unbiased, median_sigma, rbf_kernel
from tasks.rebias.imagenet9 import ImageNet9
from tasks.rebias.networks import bagnet18, feature_resnet18, simple_convnet
from tasks.rebias.scores import cell_accuracy
from tasks.rebias.task import ReBias

__all__ = [
    "COLOURS",
    "BiasedMnist",
    "ImageNet9",
    "ReBias",
    "assign_colours",
    "bagnet18",
    "bias_split",
    "cell_accuracy",
    "colour_digit",
    "feature_resnet18",
    "hsic_unbiased",
    "median_sigma",
    "rbf_kernel",
    "simple_convnet",
]
