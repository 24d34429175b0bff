"""Debian's docker-registry with a storage directory of its own."""

from __future__ import annotations

import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any

from tests.support import tools
from tests.support.link import Link
from tests.support.processes import Service

_MANIFESTS = ", ".join(
    [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)


class DockerRegistry:
    """The registry at `endpoint` (host, port), its data below `directory`; in the namespace of `link` if one is given."""

    def __init__(self, directory: Path, link: Link | None = None, *, access_log: bool = False) -> None:
        """`access_log`: note every request, for `served`."""
        self._log = directory / "registry.log"
        self.storage = directory / "storage"
        self.storage.mkdir(parents=True)
        self.endpoint = (link.inside if link else "127.0.0.1", 5000 if link else _free_port())
        config = directory / "config.yml"
        config.write_text(
            "version: 0.1\n"
            f"log: {{level: warn, accesslog: {{disabled: {'false' if access_log else 'true'}}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.storage}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{self.endpoint[0]}:{self.endpoint[1]}', secret: none-needed-for-one-instance}}\n"
        )
        command = [tools.find("docker-registry"), "serve", str(config)]
        self.service = Service(link.inside_command(command) if link else command, self._log)
        try:
            self.service.wait_until(self._answers, "answering")
        except BaseException:
            self.service.stop()
            raise

    @property
    def address(self) -> str:
        """``HOST:PORT``"""
        return "{}:{}".format(*self.endpoint)

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        """A manifest or index, decoded."""
        return json.loads(self._get(f"/v2/{repository}/manifests/{reference}"))  # type: ignore[no-any-return]

    def blob(self, repository: str, digest: str) -> bytes:
        """A blob as the registry serves it."""
        return self._get(f"/v2/{repository}/blobs/{digest}")

    def blob_file(self, digest: str) -> Path:
        """The file behind a blob; what is changed in it, the registry serves changed."""
        encoded = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / encoded[:2] / encoded / "data"

    def repositories(self) -> list[str]:
        """The repositories that exist."""
        return list(json.loads(self._get("/v2/_catalog"))["repositories"])

    def served(self) -> tuple[int, int]:
        """Bytes of answers' bodies so far, and requests, by the access log (Apache's combined form)."""
        found = re.findall(r'^\S+ - \S* ?\[[^]]*\] "GET [^"]*" \d{3} (\d+)', self._log.read_text(), re.MULTILINE)
        return sum(map(int, found)), len(found)

    def stop(self) -> None:
        """End the registry; its data stay."""
        self.service.stop()

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(*self.endpoint, timeout=30)
        try:
            connection.request("GET", path, headers={"Accept": _MANIFESTS})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise LookupError(f"{path}: {answer.status} {body[:300]!r}")
            return body
        finally:
            connection.close()

    def _answers(self) -> bool:
        try:
            self._get("/v2/")
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
