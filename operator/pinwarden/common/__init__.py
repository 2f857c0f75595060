"""Code for every layer: the standard library only, and nothing of Kubernetes or the kernel."""
