"""Places that keep images: registries, OCI layouts, OCI archives."""
