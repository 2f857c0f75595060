"""Reads an image from its OCI archive, without a container engine."""

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any


class Image:
    """An image of which no layer takes away what an earlier one has: the files of all layers are
    one tree.

    ``digest`` is the manifest's, by which a registry knows the image; ``config`` is what OCI calls
    so; ``files`` are by their paths, without a slash in front.
    """

    def __init__(self, archive: Path) -> None:
        self._layers: list[bytes] = []
        self._contents: dict[str, bytes] = {}
        self.files: dict[str, tarfile.TarInfo] = {}
        with tarfile.open(archive) as tar:

            def read(name: str) -> bytes:
                file = tar.extractfile(name)
                assert file is not None, f"{name} is not a file"
                return file.read()

            def blob(digest: str) -> bytes:
                return read(f"blobs/{digest.replace(':', '/')}")

            (entry,) = json.loads(read("index.json"))["manifests"]
            self.name: str = entry["annotations"]["org.opencontainers.image.ref.name"]
            self.digest: str = entry["digest"]
            manifest = json.loads(blob(self.digest))
            self.config: dict[str, Any] = json.loads(blob(manifest["config"]["digest"]))
            for layer in manifest["layers"]:
                self._add(blob(layer["digest"]))

    def _add(self, layer: bytes) -> None:
        self._layers.append(layer)
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            for member in tar:
                name = member.name.removeprefix("./").rstrip("/")
                self.files[name] = member
                if file := tar.extractfile(member) if member.isfile() else None:
                    self._contents[name] = file.read()

    @property
    def labels(self) -> dict[str, str]:
        """What the image says about itself."""
        labels: dict[str, str] = self.config["config"]["Labels"]
        return labels

    @property
    def compressed(self) -> int:
        """Bytes that a node pulls when it has none of the layers."""
        return sum(map(len, self._layers))

    @property
    def unpacked(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self._contents.values()))

    def read(self, path: str) -> bytes:
        """The content of a file. Raises KeyError when there is no file of that name."""
        return self._contents[path]

    def unpack(self, folder: Path) -> None:
        """Write the tree into an existing folder, with its owners and modes; needs root."""
        for layer in self._layers:
            command = [
                "tar",
                "--extract",
                "--gzip",
                "--preserve-permissions",
                "--directory",
                str(folder),
            ]
            subprocess.run(command, input=layer, check=True)
