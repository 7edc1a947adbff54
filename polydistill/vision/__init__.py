"""Born-again classifiers on CIFAR-10 and CIFAR-100 (Furlanello et al. 2018).

:mod:`~polydistill.vision.images.data` holds the images on the device, :mod:`~polydistill.vision.networks` builds the
networks, :mod:`~polydistill.vision.training` makes the steps, :mod:`~polydistill.vision.domain` is the world for a
lineage.
"""

from polydistill.vision.classifier import Classifier, load_classifier, save_classifier
from polydistill.vision.networks import build_network

__all__ = ["Classifier", "build_network", "load_classifier", "save_classifier"]
