"""Object detection: sets in COCO's layout, CenterNet and SSD, and the task that trains and scores them."""

from tasks.detection.centernet import CenterNet
from tasks.detection.coco import CocoSet
from tasks.detection.detector import Detector
from tasks.detection.fashion_scenes import FashionScenes
from tasks.detection.ssd import Ssd
from tasks.detection.task import Detection
from tasks.detection.tree_crowns import TreeCrowns

__all__ = ["CenterNet", "CocoSet", "Detection", "Detector", "FashionScenes", "Ssd", "TreeCrowns"]
