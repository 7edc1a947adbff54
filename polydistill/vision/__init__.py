"""Born-again classifiers on CIFAR-10 and CIFAR-100 (Furlanello et al. 2018), and on data of one's own.

:mod:`~polydistill.vision.data` holds the images on the device, :mod:`~polydistill.vision.networks` builds the networks,
:mod:`~polydistill.vision.training` makes the steps, :mod:`~polydistill.vision.domain` is the world for a lineage,
:mod:`~polydistill.vision.own` the one of any module and any batches.
"""

from polydistill.vision.classifier import Classifier, load_classifier, save_classifier
from polydistill.vision.networks import build_network
from polydistill.vision.own import ModuleDomain

__all__ = ["Classifier", "ModuleDomain", "build_network", "load_classifier", "save_classifier"]
