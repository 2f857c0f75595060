"""The kernel's interfaces. No module here knows pods or limits; all need only the standard library."""
