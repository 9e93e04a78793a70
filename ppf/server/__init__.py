"""One resident model behind an OpenAI-style interface, with a page to try it."""
