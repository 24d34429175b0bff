"""What is said about containerd's version and configuration."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from snapshotter.doctor.containerd import ContainerdFacts, LoadedPlugin, check_absent, check_containerd, snapshotter_names
from snapshotter.doctor.containerdconfig import Effective, effective
from snapshotter.doctor.finding import Finding, Level, worst
from tests.support import tools

ADDRESS = "/run/puzzlefs/snapshotter.sock"
ROOT = "/var/lib/puzzlefs"
EXPORTS = {"root": ROOT, "enable_remote_snapshot_annotations": "true"}
LOADED = LoadedPlugin("io.containerd.snapshotter.v1", "puzzlefs", "", EXPORTS)
DIFFER = f"""
[proxy_plugins.puzzlefs-diff]
type = "diff"
address = "{ADDRESS}"
[plugins."io.containerd.service.v1.diff-service"]
default = ["puzzlefs-diff", "walking"]
"""


def facts(version: str, text: str, plugins: tuple[LoadedPlugin, ...] = (LOADED,)) -> ContainerdFacts:
    base = ContainerdFacts("/run/containerd/containerd.sock", version, plugins=plugins, config_source="/etc/c.toml")
    return replace(base, config=effective(tomllib.loads(text), base.numbers))


def found(told: ContainerdFacts) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_containerd(told, ADDRESS, ROOT)}


def deployed(name: str) -> str:
    return (tools.ROOT / "deploy/containerd" / name).read_text()


@pytest.mark.parametrize(
    ("version", "file"), [("1.6.20", "config-1.6.toml"), ("1.7.24", "config-1.7.toml"), ("v2.1.0", "config-2.x.toml")]
)
def test_nothing_is_wrong_with_what_is_deployed(version: str, file: str) -> None:
    findings = check_containerd(facts(version, deployed(file)), ADDRESS, ROOT)
    assert worst(finding for finding in findings) is Level.OK, findings


@pytest.mark.parametrize(
    ("version", "level"), [("1.5.9", Level.FAIL), ("1.6.20~ds1", Level.OK), ("v2.2.0-rc.1", Level.OK), ("unknown", Level.WARN)]
)
def test_versions(version: str, level: Level) -> None:
    assert found(facts(version, deployed("config-2.x.toml")))["containerd.version"].level is level


def test_containerd_that_does_not_answer() -> None:
    told = ContainerdFacts("/run/c.sock", unreachable="No such file", config_error="/etc/c.toml does not exist")
    assert [finding.level for finding in check_containerd(told, ADDRESS, ROOT)] == [Level.FAIL, Level.FAIL]


def test_no_proxy_plugin() -> None:
    finding = found(facts("2.1.0", "version = 3"))["containerd.proxy-plugin"]
    assert finding.level is Level.FAIL
    assert "config-2.x.toml" in finding.advice


def test_a_proxy_plugin_at_another_socket() -> None:
    told = facts("1.7.0", deployed("config-1.7.toml").replace(ADDRESS, "/run/other.sock"))
    finding = found(told)["containerd.proxy-plugin"]
    assert finding.level is Level.FAIL
    assert ADDRESS in finding.advice


def test_the_name_is_the_administrators() -> None:
    told = facts("1.7.0", deployed("config-1.7.toml").replace("proxy_plugins.puzzlefs", "proxy_plugins.lazy"))
    assert snapshotter_names(told, ADDRESS) == ["lazy"]


@pytest.mark.parametrize(
    ("plugins", "level"),
    [
        ((LOADED,), Level.OK),
        ((replace(LOADED, error="dial unix: refused"),), Level.FAIL),
        ((replace(LOADED, exports={}),), Level.WARN),
        ((replace(LOADED, name="overlayfs"),), Level.FAIL),
    ],
)
def test_the_running_containerd_counts(plugins: tuple[LoadedPlugin, ...], level: Level) -> None:
    assert found(facts("2.1.0", deployed("config-2.x.toml"), plugins))["containerd.plugin-loaded"].level is level


@pytest.mark.parametrize(
    ("old", "new", "check", "level"),
    [
        (f'root = "{ROOT}"', "", "containerd.exports-root", Level.FAIL),
        (f'root = "{ROOT}"', 'root = "/elsewhere"', "containerd.exports-root", Level.FAIL),
        ('enable_remote_snapshot_annotations = "true"', "", "containerd.annotations", Level.WARN),
        ('snapshotter = "overlayfs"', 'snapshotter = "native"', "containerd.unpack-config", Level.FAIL),
        ('  snapshotter = "puzzlefs"\n  differ', '  snapshotter = "other"\n  differ', "containerd.unpack-config", Level.FAIL),
        ("\nversion = 3\n", '\nversion = 3\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n', "containerd.cri", Level.OK),
    ],
)
def test_what_2_needs(old: str, new: str, check: str, level: Level) -> None:
    text = deployed("config-2.x.toml")
    assert old in text
    assert found(facts("2.1.0", text.replace(old, new)))[check].level is level


def test_annotations_before_2_1() -> None:
    told = facts("1.7.0", deployed("config-1.7.toml").replace("disable_snapshot_annotations = false", ""))
    assert found(told)["containerd.annotations"].level is Level.WARN
    assert found(facts("2.0.1", deployed("config-2.x.toml")))["containerd.annotations"].level is Level.WARN


def test_pulls_by_cri_itself_need_the_old_setting() -> None:
    old = '[plugins."io.containerd.cri.v1.images"]\n'
    text = deployed("config-2.x.toml").replace(old, old + "  use_local_image_pull = true\n")
    assert found(facts("2.1.0", text))["containerd.annotations"].level is Level.WARN


def test_a_lost_snapshotter_is_found() -> None:
    assert found(facts("2.1.0", deployed("config-1.7.toml")))["containerd.cri"].level is Level.FAIL


def test_one_runtime_has_it() -> None:
    text = deployed("config-2.x.toml").partition('[plugins."io.containerd.cri')[0]
    text += '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.lazy]\nsnapshotter = "puzzlefs"\n'
    findings = found(facts("2.1.0", text))
    assert "runtime lazy" in findings["containerd.cri"].text
    assert findings["containerd.annotations"].level is Level.OK


BARE = deployed("config-2.x.toml").partition("[proxy_plugins.puzzlefs-diff]")[0]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        (BARE, Level.WARN),
        (BARE + DIFFER, Level.OK),
        (BARE + DIFFER.replace('"puzzlefs-diff", "walking"', '"walking", "puzzlefs-diff"'), Level.FAIL),
        (BARE + DIFFER.partition("[plugins")[0], Level.FAIL),
    ],
)
def test_the_differ_and_its_order(text: str, level: Level) -> None:
    assert found(facts("2.1.0", text))["containerd.differ"].level is level


def test_a_differ_that_was_not_loaded() -> None:
    broken = LoadedPlugin("io.containerd.differ.v1", "puzzlefs-diff", "refused")
    assert found(facts("2.1.0", BARE + DIFFER, (LOADED, broken)))["containerd.differ"].level is Level.FAIL


def test_1_6_knows_no_differ() -> None:
    assert "containerd.differ" not in found(facts("1.6.20", deployed("config-1.6.toml")))


def test_an_unread_configuration_is_a_failure() -> None:
    told = replace(ContainerdFacts("/s", "2.1.0"), config=None, config_error="cannot be read")
    assert found(told)["containerd.config"].level is Level.FAIL


def test_everything_that_is_wrong_says_what_to_type() -> None:
    for told in (facts("2.1.0", "version = 3"), facts("2.1.0", deployed("config-1.7.toml")), facts("1.5.0", "")):
        for finding in check_containerd(told, ADDRESS, ROOT):
            assert finding.advice or finding.level is Level.OK, finding


def test_an_empty_configuration_means_nothing() -> None:
    assert effective({}) == Effective(1, runtime_snapshotters={})


def test_a_node_of_podman_alone_needs_no_containerd() -> None:
    """Where one is installed and does not run, that may be a mistake and is said."""
    assert check_absent("/run/c.sock", installed=False).level is Level.OK
    stopped = check_absent("/run/c.sock", installed=True)
    assert stopped.level is Level.WARN
    assert "/run/c.sock" in stopped.text


def test_both_configurations_must_agree_on_who_shifts_owners() -> None:
    plain = deployed("config-2.x.toml")
    line = '# capabilities = ["remap-ids"]'
    assert line in plain
    capable = plain.replace(line, line.removeprefix("# "))
    for text, remap_ids, level in (
        (plain, False, Level.OK),
        (capable, True, Level.OK),
        (plain, True, Level.FAIL),
        (capable, False, Level.FAIL),
    ):
        findings = check_containerd(facts("2.2.1", text), ADDRESS, ROOT, remap_ids=remap_ids)
        assert {each.level for each in findings if each.check == "containerd.remap-ids"} == {level}
