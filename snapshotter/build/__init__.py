"""Making images: walking trees, reading tar layers, cutting, packing, converting."""
