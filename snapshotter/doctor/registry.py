"""Whether the registry of an image can be reached, lets us in, and serves what a lazy start needs."""

from __future__ import annotations

from dataclasses import dataclass

from snapshotter.doctor.finding import Finding, fail, ok, warn


@dataclass(frozen=True, slots=True)
class RegistryFacts:
    """What became of asking for an image.

    `credentials`: a user name is known for the host. `manifest_error`, `range_error`: why one or the other failed, empty if it
    did not. `puzzlefs_layers` of `layers`; `range_asked` and `range_received`: bytes of a pack, 0 where none was asked for.
    """

    reference: str
    host: str
    credentials: bool = False
    credentials_error: str = ""
    manifest_error: str = ""
    layers: int = 0
    puzzlefs_layers: int = 0
    range_error: str = ""
    range_asked: int = 0
    range_received: int = 0


def check_registry(facts: RegistryFacts) -> list[Finding]:
    """Findings about the registry of one image."""
    known = "with the configured credentials" if facts.credentials else "anonymously"
    findings = []
    if facts.credentials_error:
        findings.append(
            fail("registry.credentials", facts.credentials_error, "mend the credential helper or docker's config.json")
        )
    if facts.manifest_error:
        advice = "check name, network and proxy"
        if not facts.credentials:
            advice += f"; if it wants a login: docker login {facts.host}, or credentials in /etc/puzzlefs/config.toml"
        return [*findings, fail("registry.manifest", f"{facts.manifest_error} (asked {known})", advice)]
    findings.append(ok("registry.manifest", f"{facts.reference} can be read {known}"))
    if not facts.puzzlefs_layers:
        text = f"{facts.reference} is an ordinary image of {facts.layers} layers: it is downloaded whole"
        return [*findings, warn("registry.format", text, f"puzzlefs convert docker://{facts.reference} docker://…")]
    findings.append(ok("registry.format", f"{facts.puzzlefs_layers} of its {facts.layers} layers can be mounted lazily"))
    if facts.range_error:
        return [
            *findings,
            fail("registry.ranges", facts.range_error, "a lazy start needs ranges of blobs: ask whoever runs it"),
        ]
    if facts.range_asked and facts.range_received > 2 * facts.range_asked + 65536:
        text = f"{facts.host} ignores Range: it sent {facts.range_received} bytes for {facts.range_asked}"
        return [*findings, warn("registry.ranges", text, "use a registry or a mirror that serves ranges of blobs")]
    if facts.range_asked:
        findings.append(ok("registry.ranges", f"{facts.host} serves ranges of blobs"))
    return findings
