"""The holder: keeps the listener descriptors that the container runtime sends, and does nothing else."""
