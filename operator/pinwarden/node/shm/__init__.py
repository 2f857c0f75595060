"""What identifies an object of shared memory."""
