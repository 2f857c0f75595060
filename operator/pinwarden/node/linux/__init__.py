"""The kernel's interfaces. No module here knows pods or limits, or imports anything but the standard library."""
