"""Small pictures in memory and small networks: many of them are trained at once (`tasks.engine.many`)."""

from tasks.small_images.attacked import AttackedImages
from tasks.small_images.data import AveragedCifar10, AveragedFashionMnist, AveragedFolder, Directions
from tasks.small_images.networks import convnet, mlp, unit_linear
from tasks.small_images.task import SmallImages

__all__ = [
    "AttackedImages",
    "AveragedCifar10",
    "AveragedFashionMnist",
    "AveragedFolder",
    "Directions",
    "SmallImages",
    "convnet",
    "mlp",
    "unit_linear",
]
