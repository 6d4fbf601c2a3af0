"""Whether an artefact is its original: reference logits, the ladder of checks, weights, chat, and quality by text."""
