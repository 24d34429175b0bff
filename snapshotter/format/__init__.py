"""The image format: pure values, their encoding, digests, compression."""
