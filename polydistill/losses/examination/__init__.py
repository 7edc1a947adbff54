"""What :func:`~polydistill.losses.examination.doctor.doctor` looks at: one module per question.

The contract: neither network is changed, nor its mode, its buffers, its gradients, or the random streams.
"""
