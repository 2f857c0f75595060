"""The kernel's interfaces. No module here knows pods or limits, or needs a third-party library."""
