"""Export to Apple Core AI: `.aimodel` assets for macOS and iOS 27."""
