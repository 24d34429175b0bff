"""Asks the registry of an image for what a lazy start needs."""

from __future__ import annotations

from snapshotter.daemon.config import Config
from snapshotter.daemon.reach import registry_hosts
from snapshotter.doctor import registry
from snapshotter.errors import PuzzlefsError
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.annotations import parse as puzzlefs_layer
from snapshotter.format.digest import to_text
from snapshotter.registry import documents
from snapshotter.registry.credentials import DockerConfig
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.platforms import Platform
from snapshotter.registry.platforms import select as select_platform
from snapshotter.registry.reference import Reference
from snapshotter.registry.registries import Registries


def registry_facts(reference: Reference, config: Config) -> registry.RegistryFacts:
    """What became of asking for the image `reference`, with the settings of `config`."""
    facts = registry.RegistryFacts(reference.canonical, reference.host)
    credentials, credentials_error = False, ""
    own = config.registries.get(reference.host, RegistryConfig())
    try:
        credentials = own.credentials is not None or DockerConfig.default().find(reference.host) is not None
    except PuzzlefsError as error:
        credentials_error = str(error)
    with Registries(registry_hosts(config)) as hosts:
        try:
            store = hosts.open(reference)
            descriptor, data = store.manifest(reference.selector)
            if documents.is_index(descriptor.media_type):
                entries = documents.parse_object(data, reference.canonical)["manifests"]
                described = [documents.descriptor_from_json(entry, reference.canonical) for entry in entries]
                chosen = select_platform(described, Platform.of_this_machine(), reference.canonical)
                data = store.manifest(to_text(chosen.digest))[1]
            manifest = documents.parse_object(data, reference.canonical)
            layers = [documents.descriptor_from_json(layer, reference.canonical) for layer in manifest["layers"]]
            found = [puzzlefs_layer(layer.annotations) for layer in layers]
        except (PuzzlefsError, KeyError, TypeError) as error:
            return registry.RegistryFacts(
                facts.reference, facts.host, credentials, credentials_error, manifest_error=str(error) or repr(error)
            )
        packs = [place for layer in found if isinstance(layer, MetadataLayer) for place in layer.packs]
        range_error, asked, before = "", 0, hosts.traffic.received
        if packs:
            asked = packs[0].index_length
            try:
                store.read_range(packs[0].pack, packs[0].index_offset, asked)
            except PuzzlefsError as error:
                range_error = str(error)
        return registry.RegistryFacts(
            facts.reference,
            facts.host,
            credentials,
            credentials_error,
            layers=len(layers),
            puzzlefs_layers=sum(layer is not None for layer in found),
            range_error=range_error,
            range_asked=asked,
            range_received=hosts.traffic.received - before,
        )
