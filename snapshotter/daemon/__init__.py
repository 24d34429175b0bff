"""The node daemon: configuration, composition, supervision."""
