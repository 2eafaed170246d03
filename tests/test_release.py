"""What goes to the registry passes its checks, says what is true, and has all that people need."""

from __future__ import annotations

import json
import re
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from support.paths import PACK
from support.publishing import checkout, run

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

NEEDED = {"__init__.py", "nodes", "mmdiff_core", "web", "locales", "workflows"}
NEEDED |= {"pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE"}
DEVELOPERS = {"tests", "docs", "mkdocs.yml", "dev.py", "dev_parts"}
DEVELOPERS |= {".ci", ".github", ".gitignore", ".comfyignore"}
COMFY = ("-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node")
MODEL_FIELDS = ["name", "type", "base", "save_path", "description", "reference"]
MODEL_FIELDS += ["filename", "url", "size"]
CHANGES = re.compile(r"^## (\d+\.\d+\.\d+)$", re.MULTILINE)
RUNNERS = {
    "ubuntu-latest": "POSIX :: Linux",
    "windows-latest": "Microsoft :: Windows",
    "macos-latest": "MacOS",
}


def text(path: str) -> str:
    return (PACK / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads(text("pyproject.toml"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> zipfile.ZipFile:
    """What `comfy node pack` makes of the repository."""
    folder = checkout(tmp_path_factory.mktemp("release") / "pack")
    said = run(folder.parent, [*COMFY, "pack"], folder)
    assert "Warning" not in said and (folder / "node.zip").is_file(), said
    with zipfile.ZipFile(folder / "node.zip") as opened:
        yield opened


def workflow(name: str) -> dict:
    return yaml.safe_load(text(f".github/workflows/{name}.yml"))


# ---------------------------------------------------------------- the registry's checks


def test_the_registrys_own_validation_passes_without_a_warning(tmp_path):
    said = run(tmp_path, [*COMFY, "validate"], PACK)
    assert "passed" in said and "arning" not in said, said


def test_the_archive_holds_the_pack_and_nothing_that_only_developers_need(archive):
    tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops >= NEEDED and tops.isdisjoint(DEVELOPERS), tops
    assert not [name for name in archive.namelist() if name.startswith("mmdiff_core/lab/")]


def test_every_file_that_readme_and_help_pages_link_to_is_in_the_archive(archive):
    names = set(archive.namelist())
    pages = [name for name in names if name == "README.md" or re.match(r"web/docs/\w+\.md", name)]
    missing = []
    for page in pages:
        for to in re.findall(r"\]\(([^)#\s]+)[^)]*\)", archive.read(page).decode()):
            if not to.startswith("https:"):
                path = (Path(page).parent / to).as_posix()
                missing += [(page, to)] if not any(n.startswith(path) for n in names) else []
    assert missing == [] and len(pages) > 15


# ---------------------------------------------------------------- what is said of the pack


def test_version_changelog_and_workflows_agree(project):
    version = project["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert CHANGES.findall(text("CHANGELOG.md"))[0] == version
    told = {
        node["properties"]["ver"]
        for path in (PACK / "workflows").glob("*.json")
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
        if node["properties"].get("cnr_id") == project["project"]["name"]
    }
    assert told == {version}


def test_icon_and_banner_are_files_of_this_repository_in_the_registrys_shape(project):
    comfy, urls = project["tool"]["comfy"], project["project"]["urls"]
    owner = urls["Repository"].removeprefix("https://github.com/")
    for name, fits in (
        ("Icon", lambda width, height: width == height <= 400),
        ("Banner", lambda width, height: width * 9 == height * 21),
    ):
        start = f"https://raw.githubusercontent.com/{owner}/main/"
        assert comfy[name].startswith(start)
        with Image.open(PACK / comfy[name].removeprefix(start)) as opened:
            assert fits(*opened.size) and opened.format == "PNG"


def test_every_address_of_the_project_belongs_to_its_repository(project):
    urls = project["project"]["urls"]
    assert {"Repository", "Documentation", "Bug Tracker", "Changelog"} == set(urls)
    owner, name = urls["Repository"].removeprefix("https://github.com/").split("/")
    site = yaml.safe_load(re.sub(r"!!python\S+", "", text("mkdocs.yml")))
    assert urls["Documentation"] == site["site_url"] == f"https://{owner}.github.io/{name}/"
    assert site["repo_url"] == urls["Repository"]
    assert urls["Documentation"] in text("README.md")


def test_classifiers_name_only_what_is_tested(project):
    classifiers = project["project"]["classifiers"]
    assert not [c for c in classifiers if c.startswith("Environment")], "no accelerator was tested"
    matrix = workflow("tests")["jobs"]["tests"]["strategy"]["matrix"]
    systems = {RUNNERS[name] for name in matrix["os"]}
    named = {c.partition(" :: ")[2] for c in classifiers if c.startswith("Operating System")}
    assert named - {"OS Independent"} <= systems
    pythons = {c.rpartition(" :: ")[2] for c in classifiers if c.startswith("Programming")}
    assert pythons <= {*matrix["python"], *(each["python"] for each in matrix["include"])}


# ---------------------------------------------------------------- installing


def brought_along(names: list[str]) -> set[str]:
    """The packages and all that they require here, by the metadata of the installed versions."""
    found, left = set(), list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            wanted = map(Requirement, requires(name) or ())
            left += [w.name for w in wanted if not w.marker or w.marker.evaluate({"extra": ""})]
    return found


def test_what_the_requirements_bring_along_is_nothing_that_other_packs_choose_a_build_of():
    """An onnxruntime-gpu, a CUDA build of torch, an OpenCV: installing must not replace them."""
    lines = [line for line in text("requirements.txt").splitlines() if not line.startswith("#")]
    brought = brought_along([Requirement(line).name for line in lines])
    assert {"einops", "safetensors", "pydantic", "pydantic-core"} <= brought
    chosen = re.compile("onnx|insightface|opencv|torch|numpy|nvidia|cuda|triton|transformers")
    assert [name for name in brought if chosen.match(name)] == []


def test_nothing_is_installed_by_code_and_the_requirements_are_plain_lower_bounds():
    assert not (PACK / "install.py").exists()
    lines = [line for line in text("requirements.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z]+>=[\d.]+", line)] == []


# ---------------------------------------------------------------- README, workflows, model list


def test_the_first_commands_of_the_readme_are_demo_and_test_in_the_part_from_source():
    readme = text("README.md")
    first, second = re.findall(r"^    (\S.*?)(?:  .*)?$", readme, re.MULTILINE)[:2]
    assert (first, second) == ("python dev.py demo", "python dev.py test")
    assert re.findall(r"^## (.+)$", readme[: readme.index(first)], re.MULTILINE) == ["From source"]


def test_the_readme_says_under_which_name_the_templates_are_found(project):
    place = text("README.md").partition("**Workflow → Browse Templates**")[2].partition("\n2.")[0]
    assert f"`{project['project']['name']}`" in place and "folder" in place


def test_tests_run_on_three_systems_and_nothing_is_published_before_they_pass():
    tests, publish = workflow("tests")["jobs"], workflow("publish")["jobs"]
    assert set(tests["tests"]["strategy"]["matrix"]["os"]) == set(RUNNERS)
    assert publish["publish"]["needs"] == "tests"
    assert publish["tests"]["uses"].endswith("tests.yml")
    commands = "\n".join(step.get("run", "") for step in publish["publish"]["steps"])
    assert "node validate" in commands and "node pack" in commands


@pytest.mark.parametrize(
    "path", sorted((PACK / ".github/ISSUE_TEMPLATE").glob("[0-9]*.yml")), ids=lambda p: p.stem
)
def test_issue_forms_have_a_name_a_purpose_and_fields_with_labels(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) and all(field["attributes"]["label"] for field in fields)


def test_the_model_list_entries_have_the_fields_that_the_manager_reads():
    entries = json.loads(text("docs/manager-model-list.json"))["models"]
    for entry in entries:
        assert list(entry) == MODEL_FIELDS and all(entry.values())
        assert entry["save_path"] == "mmdiff" and entry["url"].startswith("https://")
