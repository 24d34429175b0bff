"""The Kubernetes manifests: valid for the API, and of one piece."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from snapshotter.daemon import config
from tests.support import tools

KUBERNETES = tools.ROOT / "deploy/kubernetes"
MANIFESTS = [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name != "kustomization.yaml"]
KUSTOMIZATIONS = sorted(KUBERNETES.rglob("kustomization.yaml"))
VERSIONS = ("1.27", "1.30", kubernetes_validate.latest_version())


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def _id(path: Path) -> str:
    return str(path.relative_to(KUBERNETES))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=_id)
def test_schema(path: Path, version: str) -> None:
    """Every field is one that this version of Kubernetes knows, of its type (the API's own schemas)."""
    found = documents(path)
    assert found
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_find_errors() -> None:
    """What is checked above can fail."""
    wrong = documents(KUBERNETES / "base/daemonset.yaml")[0]
    wrong["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=_id)
def test_kustomization(path: Path) -> None:
    """Names only files that are there, and every manifest beside it; every image and ConfigMap in them is one of its own."""
    (kustomization,) = documents(path)
    assert set(kustomization["resources"]) == {other.name for other in path.parent.glob("*.yaml")} - {path.name}
    images = {image["name"] for image in kustomization["images"]}
    maps = {made["name"] for made in kustomization.get("configMapGenerator", [])}
    for name in kustomization["resources"]:
        for document in documents(path.parent / name):
            if document["kind"] != "DaemonSet":
                continue
            pod = document["spec"]["template"]["spec"]
            assert {container["image"] for container in (*pod["initContainers"], *pod["containers"])} <= images
            assert {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} <= maps
            volumes = {volume["name"] for volume in pod["volumes"]}
            for container in (*pod["initContainers"], *pod["containers"]):
                assert {mounted["name"] for mounted in container.get("volumeMounts", [])} <= volumes
            assert (
                document["spec"]["selector"]["matchLabels"].items()
                <= document["spec"]["template"]["metadata"]["labels"].items()
            )
    for made in kustomization.get("configMapGenerator", []):
        assert all((path.parent / file).is_file() for file in made["files"])


def test_the_nodes_configuration_is_one() -> None:
    read = config.parse(tomllib.loads((KUBERNETES / "base/config.toml").read_text()))
    assert read.cache_max_bytes


def test_only_installers_are_privileged() -> None:
    """What stays running on the node has no rights at all."""
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] != "DaemonSet":
                continue
            assert not document["spec"]["template"]["spec"]["automountServiceAccountToken"]
            for container in document["spec"]["template"]["spec"]["containers"]:
                context = container["securityContext"]
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert not context["allowPrivilegeEscalation"]


def test_the_example_runs_where_the_installer_ran() -> None:
    (runtime,) = documents(KUBERNETES / "base/runtimeclass.yaml")
    (pod,) = documents(KUBERNETES / "example/pod.yaml")
    (installer,) = documents(KUBERNETES / "base/daemonset.yaml")
    assert pod["spec"]["runtimeClassName"] == runtime["metadata"]["name"]
    assert pod["metadata"]["annotations"]["io.containerd.cri.runtime-handler"] == runtime["handler"]
    wanted = runtime["scheduling"]["nodeSelector"].items()
    assert wanted <= installer["spec"]["template"]["spec"]["nodeSelector"].items()
