"""The files by which the processes of a node tell each other what is asked and what is so."""
