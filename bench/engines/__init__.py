"""What `bench.mount` compares: the tree, and the ways to mount it."""
