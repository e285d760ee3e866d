"""The service: calls in, answers out, overload, cancellation, health and shutdown.

Messages are read and filled in ``wire``.
"""
