"""containerd's snapshots: model, state, and the gRPC adapter."""
