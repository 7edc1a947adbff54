"""The images of CIFAR: read, held on the device, normalised and augmented."""
