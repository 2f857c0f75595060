"""How an object of shared memory is identified, and which mappings are of wanted objects."""
