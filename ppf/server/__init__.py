"""Serves one model at any pruning ratio: an OpenAI-style API, and a web page to try it."""
