"""Recovery training of a pruned model, by default knowledge distillation from the dense model."""
