"""What surrounds a model's weights: tokenizer, chat template, special ids, generation defaults, pooling, the other files."""
