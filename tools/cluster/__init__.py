"""Starts real Kubernetes parts on one machine, built from the Go modules below ``go/``.

Tests and people use :class:`cluster.controlplane.ControlPlane`; ``python -m cluster`` is the same
from a shell.
"""
