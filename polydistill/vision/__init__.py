"""Born-again classifiers on CIFAR-10 and CIFAR-100 (Furlanello et al. 2018), and on data of one's own.

:mod:`~polydistill.vision.images.data` holds the images on the device, :mod:`~polydistill.vision.networks` builds the
networks, :mod:`~polydistill.vision.training` makes the steps, :mod:`~polydistill.vision.domain` is the world for a
lineage, :mod:`~polydistill.learning.modules.domain` the one of any module and any batches.
"""

from polydistill.learning.modules.domain import ModuleDomain
from polydistill.vision.classifier import Classifier, load_classifier, save_classifier
from polydistill.vision.networks import build_network

__all__ = ["Classifier", "ModuleDomain", "build_network", "load_classifier", "save_classifier"]
