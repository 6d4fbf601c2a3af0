"""MODEL → spec, weights and what surrounds them; and back: checkpoints, artefacts and their manifests."""
