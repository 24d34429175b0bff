"""containerd's version and configuration, against what lazy pulls need."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from snapshotter.doctor.containerdconfig import Effective, ProxyPlugin
from snapshotter.doctor.finding import Finding, fail, ok, warn

SNAPSHOTTER = "io.containerd.snapshotter.v1"
DIFFER = "io.containerd.differ.v1"
REMAP_IDS = "remap-ids"
ANNOTATIONS_EXPORT = "enable_remote_snapshot_annotations"

EXAMPLES = "/usr/share/doc/puzzlefs-snapshotter/examples" if sys.prefix == "/usr/lib/puzzlefs" else "deploy"
"""Where containerd's lines for this program are: of the Debian package, or in the source tree."""

_VERSION = re.compile(r"v?(\d+)\.(\d+)")
_OLDEST = (1, 6)


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin of the running containerd; `error` is why it could not be loaded, empty if it was."""

    type: str
    name: str
    error: str
    exports: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerdFacts:
    """What was found out about containerd.

    `address`: its socket. `version` and `plugins` as the running one says, empty where it does not answer (`unreachable` says
    why). `config`: what its configuration means, None where it could not be read (`config_error`), and `config_source` where
    it is from.
    """

    address: str
    version: str = ""
    unreachable: str = ""
    plugins: tuple[LoadedPlugin, ...] = ()
    config: Effective | None = None
    config_source: str = ""
    config_error: str = ""

    @property
    def numbers(self) -> tuple[int, int] | None:
        """Major and minor version."""
        match = _VERSION.match(self.version)
        return None if match is None else (int(match[1]), int(match[2]))


def snapshotter_names(facts: ContainerdFacts, address: str) -> list[str]:
    """The names by which containerd knows the snapshotter at the socket `address`."""
    proxies = facts.config.proxies if facts.config is not None else ()
    return [proxy.name for proxy in proxies if proxy.type == "snapshot" and _path(proxy.address) == address]


def check_containerd(facts: ContainerdFacts, address: str, root: str, *, remap_ids: bool = False) -> list[Finding]:
    """`address`, `root` and `remap_ids` are those of the snapshotter's own configuration."""
    findings = [_version(facts)]
    if facts.config is None:
        advice = f"name it with --containerd-config, or see {EXAMPLES}/containerd"
        return [*findings, fail("containerd.config", f"containerd's configuration is unknown: {facts.config_error}", advice)]
    config, recent = facts.config, (facts.numbers or (1, 6)) >= (2, 0)
    proxy, found = _proxy(facts, config, address)
    findings.append(found)
    if proxy is not None:
        findings += _loaded(facts, proxy)
        if recent:
            findings.append(_exports_root(proxy, root))
            findings.append(_unpack(config, proxy.name))
            findings.append(_remap(proxy, remap_ids))
        findings += _cri(facts, config, proxy)
    return [*findings, *_differ(facts, config, address)]


def check_absent(address: str, *, installed: bool) -> Finding:
    """What is said where no containerd listens at `address`, and the daemon has podman or CRI-O to serve."""
    check = "containerd.version"
    if installed:
        return warn(check, f"no containerd listens at {address}: right where only podman or CRI-O are used", "")
    return ok(check, "there is no containerd: the daemon serves podman and CRI-O")


def _version(facts: ContainerdFacts) -> Finding:
    check = "containerd.version"
    if facts.unreachable:
        return fail(
            check, f"containerd at {facts.address}: {facts.unreachable}", "systemctl start containerd, or name its socket (-a)"
        )
    numbers = facts.numbers
    if numbers is None:
        return warn(check, f"containerd says its version is {facts.version!r}", "use a released containerd, 1.6 or newer")
    if numbers < _OLDEST:
        return fail(check, f"containerd {facts.version} is too old", "use containerd 1.6 or newer")
    if numbers < (1, 7):
        text = f"containerd {facts.version}; it unpacks no PuzzleFS image that was loaded or imported (1.7 and newer do)"
        return ok(check, text, "ctr images pull does not pull lazily in 1.6: use puzzlefs pull")
    return ok(check, f"containerd {facts.version}")


def _proxy(facts: ContainerdFacts, config: Effective, address: str) -> tuple[ProxyPlugin | None, Finding]:
    check = "containerd.proxy-plugin"
    snapshotters = [proxy for proxy in config.proxies if proxy.type == "snapshot"]
    for proxy in snapshotters:
        if _path(proxy.address) == address:
            return proxy, ok(check, f"containerd knows the snapshotter as {proxy.name!r} at {address} ({facts.config_source})")
    for proxy in snapshotters:
        if proxy.name == "puzzlefs":
            text = f"{facts.config_source}: the proxy plugin puzzlefs is to be at {proxy.address}, the daemon is at {address}"
            return None, fail(check, text, f'set address = "{address}" under [proxy_plugins.puzzlefs] and restart containerd')
    text = f"{facts.config_source} names no proxy plugin of type snapshot at {address}"
    numbers = facts.numbers or (2, 0)
    release = "2.x" if numbers >= (2, 0) else "1.7" if numbers >= (1, 7) else "1.6"
    return None, fail(
        check, text, f"merge deploy/containerd/config-{release}.toml into containerd's configuration and restart containerd"
    )


def _loaded(facts: ContainerdFacts, proxy: ProxyPlugin) -> list[Finding]:
    """Whether the running containerd has it too: the file may have changed since it started."""
    if facts.unreachable or not facts.plugins:
        return []
    check = "containerd.plugin-loaded"
    for plugin in facts.plugins:
        if plugin.type == SNAPSHOTTER and plugin.name == proxy.name:
            if plugin.error:
                return [
                    fail(check, f"containerd could not load {proxy.name!r}: {plugin.error}", "systemctl restart containerd")
                ]
            if recent_exports(facts) and dict(plugin.exports) != dict(proxy.exports):
                text = f"the running containerd has other exports for {proxy.name!r} than {facts.config_source}"
                return [warn(check, text, "systemctl restart containerd")]
            return [ok(check, f"the running containerd has loaded {proxy.name!r}")]
    text = f"the running containerd does not have {proxy.name!r}: it was started before the configuration was written"
    return [fail(check, text, "systemctl restart containerd")]


def recent_exports(facts: ContainerdFacts) -> bool:
    """Whether this containerd passes a proxy plugin's exports on (2.0 and later)."""
    return (facts.numbers or (0, 0)) >= (2, 0)


def _exports_root(proxy: ProxyPlugin, root: str) -> Finding:
    check = "containerd.exports-root"
    told = proxy.exports.get("root", "")
    if told.rstrip("/") == root.rstrip("/"):
        return ok(check, f"exports.root is the snapshotter's root {root}")
    text = f"exports.root is {told!r}" if told else "exports.root is not set"
    advice = f'set root = "{root}" under [proxy_plugins.{proxy.name}.exports] and restart containerd'
    return fail(check, f"{text}: the kubelet cannot tell how much space images take", advice)


def _remap(proxy: ProxyPlugin, remap_ids: bool) -> Finding:
    check = "containerd.remap-ids"
    told = REMAP_IDS in proxy.capabilities
    if told and remap_ids:
        return ok(check, "containers in user namespaces start lazily")
    if remap_ids:
        text = f"containerd copies images for containers in user namespaces, and {proxy.name!r} shifts the owners once more"
        advice = f'set capabilities = ["{REMAP_IDS}"] under [proxy_plugins.{proxy.name}] and restart containerd'
        return fail(check, text, advice)
    if told:
        text = f"containerd leaves the owners of files in user namespaces to {proxy.name!r}, which does not shift them"
        return fail(check, text, "set remap_ids = true under [containerd] of the snapshotter's configuration and restart it")
    advice = f"on Linux 6.12 and newer, see {REMAP_IDS} in {EXAMPLES}/containerd/config-2.x.toml"
    return ok(check, "a container in a user namespace starts from a copy of its image, fetched whole", advice)


def _unpack(config: Effective, name: str) -> Finding:
    check = "containerd.unpack-config"
    entry = '[[plugins."io.containerd.transfer.v1.local".unpack_config]] with snapshotter = "{}" and platform = "linux"'
    there = {unpack.snapshotter for unpack in config.unpack or ()}
    if name not in there:
        text = f"the transfer service (ctr images pull, nerdctl 2.3) cannot unpack into {name!r}: no unpack platforms defined"
        return fail(check, text, f"add {entry.format(name)}, and one for overlayfs, and restart containerd")
    if "overlayfs" not in there:
        text = "the transfer service cannot unpack into overlayfs any more: the list replaces containerd's own"
        return fail(check, text, f"add {entry.format('overlayfs')} and restart containerd")
    return ok(check, f"the transfer service unpacks into {', '.join(sorted(there))}")


def _cri(facts: ContainerdFacts, config: Effective, proxy: ProxyPlugin) -> list[Finding]:
    check = "containerd.cri"
    if not config.cri_enabled:
        return [ok(check, "CRI is disabled: no kubelet uses this containerd")]
    if config.lost_snapshotter:
        text = "containerd 2.x ignores CRI's snapshotter in a version 2 file without a table of runtimes: pods use overlayfs"
        advice = 'write it as snapshotter under [plugins."io.containerd.cri.v1.images"] of a version 3 file'
        return [fail(check, text, advice)]
    runtimes = sorted(name for name, own in (config.runtime_snapshotters or {}).items() if own == proxy.name)
    if config.cri_snapshotter != proxy.name and not runtimes:
        used = config.cri_snapshotter or "overlayfs"
        text = f"pods are started with {used}, not with {proxy.name!r}"
        return [ok(check, text, f"for Kubernetes, see the CRI lines in {EXAMPLES}/containerd")]
    where = "pods" if config.cri_snapshotter == proxy.name else f"pods of runtime {', '.join(runtimes)}"
    return [ok(check, f"{where} are started with {proxy.name!r}"), _annotations(facts, config, proxy)]


def _annotations(facts: ContainerdFacts, config: Effective, proxy: ProxyPlugin) -> Finding:
    check = "containerd.annotations"
    by_transfer = (facts.numbers or (1, 6)) >= (2, 1) and not config.local_pull
    if by_transfer:
        good = proxy.exports.get(ANNOTATIONS_EXPORT) == "true"
        advice = f'set {ANNOTATIONS_EXPORT} = "true" under [proxy_plugins.{proxy.name}.exports]'
    else:
        good = config.annotations_disabled is False
        advice = "set disable_snapshot_annotations = false beside CRI's snapshotter"
    if good:
        return ok(check, "CRI tells the snapshotter under which reference an image is pulled")
    text = (
        "CRI does not tell under which reference an image is pulled: an image that was copied is fetched from where it was made"
    )
    return warn(check, text, f"{advice} and restart containerd")


def _differ(facts: ContainerdFacts, config: Effective, address: str) -> list[Finding]:
    if (facts.numbers or (1, 6)) < (1, 7):
        return []
    check = "containerd.differ"
    ours = [proxy.name for proxy in config.proxies if proxy.type == "diff" and _path(proxy.address) == address]
    order = config.differs or ("walking",)
    if not ours:
        text = "no differ at the snapshotter's socket: a PuzzleFS image that is loaded or imported cannot be unpacked"
        return [warn(check, text, f"add the lines of the differ in {EXAMPLES}/containerd and restart containerd")]
    name = ours[0]
    if name not in order or ("walking" in order and order.index(name) > order.index("walking")):
        text = f"the differ {name!r} is not tried before containerd's own (order: {', '.join(order)})"
        advice = f'set default = ["{name}", "walking"] under [plugins."io.containerd.service.v1.diff-service"]'
        return [fail(check, text, f"{advice} and restart containerd")]
    for plugin in facts.plugins:
        if plugin.type == DIFFER and plugin.name == name and plugin.error:
            return [
                fail(check, f"containerd could not load the differ {name!r}: {plugin.error}", "systemctl restart containerd")
            ]
    return [ok(check, f"layers are unpacked by {', '.join(order)}, in this order")]


def _path(address: str) -> str:
    return address.removeprefix("unix://")
