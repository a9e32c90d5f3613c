"""The frozen networks around the transformer: text encoder, audio encoder, VAE."""
