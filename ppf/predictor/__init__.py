"""The predictor: masks to log-perplexity, with a standard deviation."""
