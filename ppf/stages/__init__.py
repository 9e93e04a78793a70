"""The stages, each a library call on a resolved config: collect → train → search → prune → evaluate."""
