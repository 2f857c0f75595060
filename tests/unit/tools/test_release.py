"""What a release is checked for, and that this tree names one version."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.image import NAME
from release.artifacts import changes as base_changes
from release.artifacts import sums
from release.checks import CHANGES, CHART, IMAGE, PACKAGE, PROJECT, changes, git, problems, versions
from release.errors import ReleaseError
from release.rootfs import Root, owners, stanzas, used

ROOT = Path(__file__).parents[3]
FILES = {
    PROJECT: '[project]\nname = "pinwarden"\nversion = "1.2.3"\n',
    PACKAGE: '"""A package."""\n\n__version__ = "1.2.3"\n',
    CHART: "apiVersion: v2\nversion: 1.2.3\nappVersion: 1.2.3\n",
    CHANGES: "# Changelog\n\n## Unreleased\n\n- More.\n\n"
    "## 1.2.3 - 2026-01-02\n\n- First.\n\n## 1.2.2\n",
    "examples/a/pod.yaml": "spec: {containers: [{image: pinwarden.local/pinwarden:1.2.3}]}\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that can be released as 1.2.3."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(tree: Path) -> None:
    git(tree, "add", ".")
    git(tree, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=a")


def test_all_places_of_this_tree_name_one_version() -> None:
    named = list(versions(ROOT))
    places = {place for place, _ in named}
    assert places >= {PROJECT, PACKAGE, f"{CHART} (version)", f"{CHART} (appVersion)"}
    assert places >= {"docs/install.md", "docs/quick-start.md", "docs/release.md"}
    assert sum(place.startswith("examples/") for place in places) >= 3
    assert len({version for _, version in named}) == 1, named


def test_the_image_is_named_as_the_chart_and_the_examples_name_it() -> None:
    found = IMAGE.fullmatch(NAME)
    assert found is not None
    assert found[1] == dict(versions(ROOT))[f"{CHART} (appVersion)"]


def test_a_tree_that_is_fit_has_no_problems(tree: Path) -> None:
    assert not list(problems(tree, "1.2.3"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (PROJECT, PROJECT),
        (PACKAGE, PACKAGE),
        (CHART, f"{CHART} (version)"),
        ("examples/a/pod.yaml", "examples/a/pod.yaml"),
    ],
)
def test_a_place_with_another_version_is_named_with_what_to_do(
    tree: Path, name: str, told: str
) -> None:
    (tree / name).write_text(FILES[name].replace("1.2.3", "1.2.4", 1))
    commit(tree)
    assert list(problems(tree, "1.2.3")) == [f"{told} names version 1.2.4: change it to 1.2.3"]


def test_another_version_than_the_trees_is_refused_with_every_place(tree: Path) -> None:
    found = list(problems(tree, "1.2.4"))
    assert len(found) == 6
    assert found[-1] == f"{CHANGES} tells nothing of 1.2.4: name its section `## 1.2.4`"


@pytest.mark.parametrize(
    "text",
    [
        "ctr images import build/pinwarden-{}-image.tar",
        "skopeo copy ... docker://registry.example/pinwarden:{}",
        "helm install pinwarden pinwarden-{}.tgz",
        "kubectl apply -f pinwarden-{}-crds.yaml",
        "docker build --label org.opencontainers.image.version={} .",
    ],
)
def test_a_document_that_names_an_earlier_version_beside_this_one_is_told(
    tree: Path, text: str
) -> None:
    document = tree / "docs/how-to/page.md"
    document.parent.mkdir(parents=True)
    document.write_text(
        f"{text.format('1.2.3')}\n{text.format('1.2.2')}\n{text.format('VERSION')}\n"
    )
    commit(tree)
    assert list(problems(tree, "1.2.3")) == [
        "docs/how-to/page.md names version 1.2.2: change it to 1.2.3"
    ]


@pytest.mark.parametrize(
    "version", ["v1.2.3", "1.2", "1.2.3-rc.1", "1.2.3rc1", "01.2.3", "1.2.3\n"]
)
def test_what_python_and_helm_do_not_read_alike_is_no_version(tree: Path, version: str) -> None:
    assert "is no version" in next(problems(tree, version))


@pytest.mark.parametrize("name", ["new.txt", PROJECT])
def test_what_is_not_committed_is_a_problem(tree: Path, name: str) -> None:
    with (tree / name).open("a") as file:
        file.write("# more\n")
    (found,) = problems(tree, "1.2.3")
    assert found.startswith("there is what is not committed")
    assert name in found


def test_the_section_of_a_version_ends_where_the_next_begins() -> None:
    assert changes(FILES[CHANGES], "1.2.3") == "- First."
    assert changes(FILES[CHANGES], "Unreleased") == "- More."
    assert changes(FILES[CHANGES], "1.2.2") == ""
    assert changes(FILES[CHANGES], "1.2") == ""


def test_another_base_is_told_by_its_packages() -> None:
    named = "libc6 2.36-9\nlibssl3 3.0.15-1\n"
    assert not base_changes(named, named)
    assert base_changes(named, "libc6 2.36-10\nlibssl3 3.0.15-1\nzlib1g 1.2\n") == [
        "-libc6 2.36-9",
        "+libc6 2.36-10",
        "+zlib1g 1.2",
    ]


def test_git_that_fails_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="not a git repository"):
        git(tmp_path, "status")


def test_sums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("two")
    (tmp_path / "a").write_text("one")
    text = sums(tmp_path.iterdir())
    assert [line.split("  ")[1] for line in text.splitlines()] == ["a", "b"]
    check = ["sha256sum", "--check", "--strict"]
    assert subprocess.run(check, cwd=tmp_path, input=text, text=True, check=False).returncode == 0
    (tmp_path / "b").write_text("other")
    assert subprocess.run(check, cwd=tmp_path, input=text, text=True, check=False).returncode == 1


def test_a_file_is_copied_with_every_link_on_the_way_to_it(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    (base / "usr/lib/x86").mkdir(parents=True)
    (base / "usr/lib/x86/libz.so.1.2").write_text("code")
    (base / "usr/lib/x86/libz.so.1").symlink_to("libz.so.1.2")
    (base / "lib").symlink_to("usr/lib")
    (base / "linker").symlink_to(base / "lib/x86/libz.so.1")
    (base / "usr/lib/x86/libz.so.1.2").chmod(0o4775)
    target.mkdir()
    root = Root(target)
    root.copy(base / "linker")
    root.copy(base / "linker")
    inside = root.inside(base)
    assert (inside / "lib").readlink() == Path("usr/lib")
    assert (inside / "usr/lib/x86/libz.so.1").readlink() == Path("libz.so.1.2")
    assert (inside / "linker").readlink() == base / "lib/x86/libz.so.1"
    assert (inside / "usr/lib/x86/libz.so.1.2").read_text() == "code"
    assert (inside / "usr/lib/x86/libz.so.1.2").stat().st_mode & 0o7777 == 0o755
    assert root.files == {base / "usr/lib/x86/libz.so.1.2"}


def test_the_unused_part_of_the_library_is_left_out_at_any_depth(tmp_path: Path) -> None:
    for name in (
        "os.py",
        "json/__init__.py",
        "json/__pycache__/x.pyc",
        "ctypes/test/a.py",
        "_testcapi.so",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in used(tmp_path)] == [
        "json/__init__.py",
        "os.py",
    ]


def test_the_packages_of_files_are_told_whatever_name_the_folder_goes_by(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    dpkg = tmp_path / "dpkg"
    (dpkg / "info").mkdir(parents=True)
    (dpkg / "info/libz1:amd64.list").write_text(f"{tmp_path}/lib\n{tmp_path}/lib/libz.so\n")
    (dpkg / "info/other.list").write_text(f"{tmp_path}/usr/lib/other.so\n")
    (dpkg / "status").write_text("Package: libz1\nVersion: 1\n\nPackage: other\nVersion: 2\n")
    assert owners([tmp_path / "usr/lib/libz.so", Path(sys.executable)], dpkg) == {"libz1"}
    assert stanzas({"libz1"}, dpkg) == {"libz1": "Package: libz1\nVersion: 1\n"}
    assert stanzas({"libz1"}, tmp_path) == {}
