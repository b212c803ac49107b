"""Mathematics of the explanations: arrays and tensors in, arrays and tensors out."""
