"""Metrics in Prometheus' form, over the daemon and its workers.

Labels are bounded: a registry host (at most `HOSTS_MAX`, the rest is ``other``), a kind of read, a worker's number, and the
diff ID of a mounted layer (at most `LAYERS_MAX`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from snapshotter import __version__
from snapshotter.chunkstore.coverage import Coverage
from snapshotter.chunkstore.reads import BUCKETS, KINDS
from snapshotter.chunkstore.stats import OTHER, Count
from snapshotter.daemon.activity import Totals
from snapshotter.daemon.status import Overview

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HOSTS_MAX = 16
LAYERS_MAX = 128

_BY_SOURCE = {
    Count.REQUESTS: ("requests", "Requests for ranges of blobs"),
    Count.BYTES: ("received_bytes", "Stored bytes that sources sent"),
    Count.AHEAD: ("read_ahead_chunks", "Chunks that were fetched before anybody asked for them"),
    Count.CORRUPT: ("verify_failures", "Chunks whose bytes were not what their name says"),
}
_PLAIN = {
    Count.HITS: ("cache_hits", "Chunks that the cache had"),
    Count.MISSES: ("cache_misses", "Chunks that had to be fetched"),
    Count.RETRIES: ("retries", "Requests made again after a failure"),
    Count.SHARED: ("shared_fetches", "Chunks that came with somebody else's request"),
    Count.GAVE_UP: ("abandoned_waits", "Waits for somebody else's request that ended without an answer"),
    Count.CACHE_CORRUPT: ("cache_corrupt_files", "Cached files that did not match their name and were dropped"),
    Count.CACHE_WRITE_FAILURES: ("cache_write_failures", "Chunks that the cache could not keep"),
    Count.CACHE_READ_FAILURES: ("cache_read_failures", "Cached files that could not be read"),
    Count.EVICTIONS: ("cache_evictions", "Files removed to keep the cache's cap"),
    Count.EVICTED_BYTES: ("cache_evicted_bytes", "Bytes removed to keep the cache's cap"),
    Count.EVICTED_RECENT_BYTES: ("cache_evicted_recent_bytes", "Bytes removed that containers had read within a day"),
    Count.SERVED: ("peers_served_chunks", "Chunks that were sent to other nodes"),
    Count.DECLINED: ("peers_declined_chunks", "Chunks that other nodes did not get, beyond peers.rate"),
    Count.SERVED_BYTES: ("peers_served_bytes", "Bytes of chunks that were sent to other nodes"),
}


def expose(overview: Overview) -> bytes:
    """`overview` in Prometheus' text form."""
    registry = CollectorRegistry()
    registry.register(_Collector(overview))
    return generate_latest(registry)


class _Collector:
    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        overview = self._overview
        yield _gauge("build_info", "What is running", ("version",), {(__version__,): 1.0})
        yield _single("start_time_seconds", "When the daemon started, in seconds since 1970", overview.started)
        yield from _counters(overview.totals)
        yield from _reads(overview.totals)
        yield _single("cache_bytes", "Bytes of cached chunks on disk", overview.cache.usage.used)
        yield _single("cache_recent_bytes", "Those of chunks that containers read within a day", overview.cache.usage.recent)
        cap = overview.cache.cap
        yield _single("cache_max_bytes", "The cache's cap, 0 for none", 0 if cap is None else cap.max_bytes)
        yield _single("cache_reserve_bytes", "How much of the cap is kept for them", 0 if cap is None else cap.reserved_bytes)
        yield _single("cache_free_bytes", "Bytes free on the cache's file system", overview.cache.free)
        mounts: dict[tuple[str, ...], float] = {(str(state.number),): float(len(state.mounts)) for state in overview.workers}
        yield _gauge("worker_mounts", "Mounts that a worker serves", ("worker",), mounts)
        up: dict[tuple[str, ...], float] = {(str(state.number),): float(state.report is not None) for state in overview.workers}
        yield _gauge("worker_up", "Whether a worker answers", ("worker",), up)
        background: dict[tuple[str, ...], float] = {("fetching",): 0.0, ("waiting",): 0.0}
        for told in overview.background.values():
            background["fetching" if told.get("state") == "fetching" else "waiting",] += 1
        yield _gauge("background_layers", "Layers whose rest is still to be fetched unasked", ("state",), background)
        yield _single("layers_failed", "Layers that cannot be mounted now", len(overview.failed))
        yield from _coverage(overview.layers)


def _counters(totals: Totals) -> Iterator[Metric]:
    for what, (name, text) in _BY_SOURCE.items():
        family = CounterMetricFamily(f"puzzlefs_{name}", text, labels=["host"])
        for host, amount in by_host(totals.counts.get(what, {})).items():
            family.add_metric([host], amount)
        yield family
    for what, (name, text) in _PLAIN.items():
        plain = CounterMetricFamily(f"puzzlefs_{name}", text)
        plain.add_metric([], totals.count(what))
        yield plain


def _reads(totals: Totals) -> Iterator[Metric]:
    for kind, text in zip(KINDS, ("Reads of file data", "Reads that waited for a fetch"), strict=True):
        family = HistogramMetricFamily(f"puzzlefs_{kind}_seconds", f"{text}, in seconds")
        counts = accumulate(totals.latency[kind])
        buckets = [(str(bound), float(count)) for bound, count in zip((*BUCKETS, "+Inf"), counts, strict=True)]
        family.add_metric([], buckets, totals.seconds[kind])
        yield family
    in_flight: dict[tuple[str, ...], float] = {(kind,): float(totals.in_flight[kind]) for kind in KINDS}
    yield _gauge("reads_in_flight", "Reads under way", ("kind",), in_flight)
    hung: dict[tuple[str, ...], float] = {(kind,): float(totals.hung[kind]) for kind in KINDS}
    yield _gauge("reads_hung", "Reads that have waited for more than 5 s", ("kind",), hung)
    failed = CounterMetricFamily("puzzlefs_reads_failed", "Reads that ended in an error", labels=["kind"])
    for kind in KINDS:
        failed.add_metric([kind], totals.failed[kind])
    yield failed


def _coverage(layers: Mapping[str, Coverage]) -> Iterator[Metric]:
    shown = dict(sorted(layers.items())[:LAYERS_MAX])
    ratios: dict[tuple[str, ...], float] = {(layer,): coverage.ratio for layer, coverage in shown.items()}
    yield _gauge("layer_local_ratio", "Part of a mounted layer's chunks that is on this node", ("layer",), ratios)
    sizes: dict[tuple[str, ...], float] = {(layer,): float(coverage.disk) for layer, coverage in shown.items()}
    yield _gauge("layer_local_bytes", "Bytes of a mounted layer's chunks on this node", ("layer",), sizes)
    yield _single("layers_mounted", "Mounted layers", len(layers))


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"puzzlefs_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _single(name: str, text: str, value: float) -> GaugeMetricFamily:
    return _gauge(name, text, (), {(): value})


def by_host(counted: Mapping[str, int]) -> dict[str, int]:
    """Amounts by source (``packs(HOST/REPOSITORY)``, ``HOST/REPOSITORY``) as amounts by host, the largest by name."""
    hosts: dict[str, int] = {}
    for source, amount in counted.items():
        inner = source.rpartition("(")[2].rstrip(")")
        host = inner.partition("/")[0] or OTHER
        hosts[host] = hosts.get(host, 0) + amount
    ranked = sorted(hosts, key=lambda host: (-hosts[host], host))
    named = {host: hosts[host] for host in ranked[:HOSTS_MAX]}
    rest = sum(hosts[host] for host in ranked[HOSTS_MAX:])
    return {**named, OTHER: named.get(OTHER, 0) + rest} if rest else named
