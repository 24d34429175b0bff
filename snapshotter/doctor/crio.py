"""CRI-O on this node: its version, and whether its own options name the layer store; where there is to be one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshotter.doctor.finding import Finding, fail, ok
from snapshotter.doctor.machine import output

CONFIG = Path("/etc/crio/crio.conf")
"""CRI-O's configuration; files of the directory beside it, ``crio.conf.d``, come after it in the order of their names."""

FORGETS_FROM = (1, 33)
"""CRI-O from here on has containers/storage 1.58 or later, which does not write down what layers it took from a store."""

_OPTION = "overlay.additionallayerstore="


@dataclass(frozen=True, slots=True)
class CrioFacts:
    """`version`: what CRI-O says of itself, empty where it is not installed. `stores`: the additional layer stores of its own
    options, which count in place of those of storage.conf."""

    version: str = ""
    stores: Sequence[str] = ()

    def names(self, mountpoint: Path) -> bool:
        """Whether the store at `mountpoint` is among them, in the form that is needed."""
        return f"{mountpoint}:ref" in self.stores


def check_crio(facts: CrioFacts, mountpoint: Path) -> list[Finding]:
    """All that can be said about CRI-O and the layer store at `mountpoint`; nothing where there is no CRI-O."""
    if not facts.version:
        return []
    findings = [_version(facts.version)]
    if facts.stores:
        findings.append(_storage(facts, mountpoint))
    return findings


def crio_facts(config: Path = CONFIG) -> CrioFacts:
    """What this machine says."""
    match = re.search(r"(\d+\.\d+[\w.]*)", output(["crio", "--version"]) or "")
    if match is None:
        return CrioFacts()
    files = [config, *sorted(config.with_name(f"{config.name}.d").glob("*"))]
    return CrioFacts(match[1], layer_stores(file.read_text(encoding="utf-8") for file in files if file.is_file()))


def layer_stores(texts: Iterable[str]) -> Sequence[str]:
    """The additional layer stores that CRI-O's configuration names, of which `texts` are the files, the last one counting."""
    options: list[str] = []
    for text in texts:
        try:
            found = tomllib.loads(text).get("crio", {}).get("storage_option")
        except (tomllib.TOMLDecodeError, AttributeError):
            continue  # CRI-O does not start with it, and says why
        if isinstance(found, list):
            options = [option for option in found if isinstance(option, str)]
    return tuple(option.removeprefix(_OPTION) for option in options if option.startswith(_OPTION))


def _version(version: str) -> Finding:
    numbers = tuple(int(number) for number in version.split(".")[:2])
    if numbers < FORGETS_FROM:
        return ok("crio.version", f"CRI-O {version} runs PuzzleFS images and keeps what it pulled")
    text = f"CRI-O {version} does not write down PuzzleFS images, and after its next start it cannot list any images"
    advice = "take the layer store out of its configuration; 1.32 is right (a defect of containers/storage from 1.58 on)"
    return fail("crio.version", text, advice)


def _storage(facts: CrioFacts, mountpoint: Path) -> Finding:
    if facts.names(mountpoint):
        return ok("crio.storage", "CRI-O's own options name the layer store")
    text = f"CRI-O's own options name {', '.join(facts.stores)} and not the layer store, whatever storage.conf says"
    return fail("crio.storage", text, f'write storage_option = ["{_OPTION}{mountpoint}:ref"] below [crio]')
