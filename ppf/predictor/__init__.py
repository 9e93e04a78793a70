"""The predictor: maps policies to log-perplexity, with a standard deviation."""
