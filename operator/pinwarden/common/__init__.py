"""What every layer may use: no word of Kubernetes or of the kernel, and nothing but the standard
library.
"""
