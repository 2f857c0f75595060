"""The bill of materials of an image (CycloneDX): what is in it, by what it says itself.

Python distributions are those whose metadata lies in the image, each with its license as declared
and the hash of the wheel, which requirements.lock allowed. Debian packages are those that files of
the image came from; their terms lie in the image too and are pointed at, for they cover whole
source packages, of which the image has a few files.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.contrib.this.builders import this_component
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from packageurl import PackageURL

from release.archive import Image
from release.errors import ReleaseError

OCI = "org.opencontainers.image"
TERMS = "pinwarden:terms"
"""The property of a component that names the file in the image where its terms are."""


def normalised(name: str) -> str:
    """A distribution's name as an index knows it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def headers(image: Image, pattern: str) -> Iterator[Message]:
    """The files of an image whose paths match, read as fields with values."""
    for path in sorted(image.files):
        if re.fullmatch(pattern, path):
            yield HeaderParser().parsestr(image.read(path).decode())


def _license(metadata: Message) -> list[License]:
    declared = (
        metadata["License-Expression"] or (metadata["License"] or "").strip().partition("\n")[0]
    )
    if not declared:
        return []
    made = LicenseFactory().make_from_string(
        declared, license_acknowledgement=LicenseAcknowledgement.DECLARED
    )
    return [made]


def _hashes(wheels: Path) -> dict[tuple[str, str], str]:
    """SHA-256 of each wheel by the name and version of its distribution."""
    found = {}
    for wheel in wheels.glob("*.whl"):
        name, version = wheel.name.split("-")[:2]
        found[normalised(name), version] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return found


def distributions(image: Image, wheels: Path) -> Iterator[Component]:
    """The Python distributions, of which only the project's own was not installed from a wheel of
    the lock.
    """
    known = _hashes(wheels)
    for metadata in headers(image, r"opt/pinwarden/[^/]+\.dist-info/METADATA"):
        name, version = normalised(metadata["Name"]), metadata["Version"]
        digest = known.get((name, version))
        if digest is None and name != "pinwarden":
            raise ReleaseError(
                f"the image has {name} {version}, of which there is no wheel in {wheels}"
            )
        url = PackageURL("pypi", name=name, version=version)
        yield Component(
            type=ComponentType.LIBRARY if digest else ComponentType.APPLICATION,
            name=name,
            version=version,
            purl=url,
            bom_ref=str(url),
            licenses=_license(metadata),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else [],
        )


def packages(image: Image) -> Iterator[Component]:
    """The Debian packages."""
    release = dict(
        line.split("=", 1) for line in image.read("usr/lib/os-release").decode().splitlines()
    )
    distribution = f"{release['ID']}-{release['VERSION_ID']}".replace('"', "")
    for stanza in headers(image, r"var/lib/dpkg/status\.d/[^/]+"):
        name, version, architecture = stanza["Package"], stanza["Version"], stanza["Architecture"]
        url = PackageURL(
            "deb",
            "debian",
            name,
            version,
            qualifiers={"arch": architecture, "distro": distribution},
        )
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=url,
            bom_ref=str(url),
            properties=[Property(name=TERMS, value=f"/usr/share/doc/{name}/copyright")],
        )


def bill(image: Image, wheels: Path) -> str:
    """Return the bill of an image as CycloneDX JSON, the same for the same image.

    ``wheels`` is the folder that the image was built with. Raises ReleaseError when the image has
    what no wheel explains.
    """
    name, _, version = image.name.rpartition(":")
    whole = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=version,
        bom_ref=image.digest,
        purl=PackageURL("oci", name=name.rpartition("/")[2], version=image.digest),
        licenses=[LicenseFactory().make_from_string(image.labels[f"{OCI}.licenses"])],
    )
    parts = [*distributions(image, wheels), *packages(image)]
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, image.digest),
        metadata=BomMetaData(
            component=whole,
            timestamp=datetime.fromisoformat(
                image.labels.get(f"{OCI}.created") or image.config["created"]
            ),
            tools=[],
        ),
        components=parts,
    )
    bom.metadata.tools.components.add(this_component())
    bom.register_dependency(whole, parts)
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    # Imported here because it takes 3 s: it builds parsers of every string format.
    from cyclonedx.validation.json import JsonStrictValidator

    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ReleaseError(f"the bill of materials is not CycloneDX: {problem}")
    return f"{text}\n"
