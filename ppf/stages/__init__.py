"""The stages, functions of a resolved config: collect, train, search, prune, recover, evaluate.

Their steps have modules of their own: `acquire` and `score` belong to train; `search_inputs`,
`selection`, `tested`, `dynamic` and `chain` to search; `recover_dynamic` to
recover.
"""
