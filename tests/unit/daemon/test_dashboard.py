"""Every metric that the dashboard shows exists, with the labels that it goes by; and every metric is shown."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snapshotter.chunkstore.coverage import Coverage
from snapshotter.chunkstore.directory import Usage
from snapshotter.chunkstore.stats import Count
from snapshotter.daemon.activity import Totals
from snapshotter.daemon.metrics import expose
from snapshotter.daemon.status import CacheState, LayerMount, Overview
from snapshotter.daemon.supervisor import WorkerState

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "puzzlefs.json"
_NOT_OURS = {"label_values"}


@pytest.fixture(scope="module")
def samples() -> dict[str, set[str]]:
    """The labels of each sample that a daemon exposes which has seen everything once."""
    totals = Totals()
    totals.counts = {what: {"registry.example/app": 1} for what in Count}
    overview = Overview(
        started=time.time(),
        workers=[WorkerState(0, 1, ("/l/1",), 0, 1.0, {})],
        totals=totals,
        layers={"sha256:00": Coverage(2, 1, 10, 5, 4096)},
        mounts=[LayerMount("sha256:00", "containerd", ("registry.example/app:1",), "/l/1")],
        failed={},
        cache=CacheState(Path("/chunks"), Usage(1, 1, 1), None, 1),
        background={},
        errors=[],
    )
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(expose(overview).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[str]:
    described = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in described["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_that_is_shown_exists(expression: str, samples: dict[str, set[str]]) -> None:
    names = set(re.findall(r"\bpuzzlefs_[a-z_]+", expression))
    assert names, expression
    assert names <= samples.keys()
    by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    selected = set(re.findall(r"[{,]([a-z]+)=", expression))
    known = {label for name in names for label in samples[name]} | {"instance"}
    assert by | selected <= known


def test_every_metric_is_shown(samples: dict[str, set[str]]) -> None:
    shown = "\n".join(expressions())
    missing = [name for name in samples if not re.search(rf"\b{re.sub('_(bucket|count|sum)$', '', name)}", shown)]
    assert missing == []
