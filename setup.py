"""Generates the gRPC code from ``proto/`` when the package is built or installed; everything else is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class GenerateThenBuild(build_py):
    """``build_py`` that first runs protoc over ``proto/``, into the package (so that an editable install has it too)."""

    def run(self) -> None:
        import grpc_tools
        from grpc_tools import protoc

        proto = HERE / "proto"
        include = Path(grpc_tools.__file__).parent / "_proto"
        sources = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
        outputs = [f"--{kind}_out={HERE}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{proto}", f"-I{include}", *outputs, *sources]) != 0:
            raise SystemExit("protoc failed on proto/")
        super().run()


setup(cmdclass={"build_py": GenerateThenBuild})
