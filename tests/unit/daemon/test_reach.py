"""What the configuration lets a process reach."""

from __future__ import annotations

from pathlib import Path

from snapshotter.daemon.config import Config
from snapshotter.daemon.reach import Reach
from snapshotter.registry.hosts import RegistryConfig


def test_a_host_with_settings_is_known_with_its_port(tmp_path: Path) -> None:
    """From the configuration, then from ``hosts.toml``: what containerd's labels leave out."""
    (tmp_path / "r.example_5000_").mkdir()
    registries = {"r.example:5001": RegistryConfig(plain_http=True), "r.example": RegistryConfig(), "other:1": RegistryConfig()}
    with Reach(Config(hosts_directory=tmp_path, registries=registries)) as reach:
        assert reach.ports("r.example") == ["r.example:5001", "r.example:5000"]
        assert reach.ports("nobody") == []
