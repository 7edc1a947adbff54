"""The checks of :func:`~polydistill.losses.examination.doctor.doctor`: one module per question.

The contract: neither network is changed, nor its mode, its buffers, its gradients, or the random streams.
"""
