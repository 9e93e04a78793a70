"""The stages, functions of a resolved config: collect, train, search, prune, recover, evaluate.

Their steps have modules of their own: `fit` and `score` belong to train; `tested` to search;
`distillation` to recover.
"""
