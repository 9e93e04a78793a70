"""What a model scores, and how large it is."""
