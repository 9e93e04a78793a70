"""Recovery training: a pruned model learns to predict as the dense model does."""
