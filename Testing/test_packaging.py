"""What is packed is what is on disk: wheel, Slicer extension, icons, index entry, and finding resources in each."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.resources import resource_path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIBRARY_FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "RTDigitalTwinLib").rglob("*.py"))


def resource_files() -> list[str]:
    """Files of Resources/ that are packed, relative to it: all but the screenshots of the documentation."""
    folder = ROOT / "Resources"
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(p.as_posix() for p in found if p.parts[0] != "Screenshots")


def copy_source(destination: Path) -> Path:
    """A copy to build in, with two resources of its own: one to be packed, one to be left out."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out", "Testing")
    shutil.copytree(ROOT, destination, ignore=ignore)
    for name in ("Protocols/deeper/packed.toml", "Screenshots/left_out.png"):
        path = destination / "Resources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return destination


def run_python(code: str, folder: Path, python: str | Path = sys.executable) -> str:
    """What a fresh interpreter prints that finds the library in the folder only; Path.cwd() is elsewhere."""
    command = [str(python), "-I", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder.parent).stdout.strip()


PRINT_PACKED = (
    "from RTDigitalTwinLib.resources import resource_path as r; print(r('Protocols', 'deeper', 'packed.toml'))"
)


# Resources in a checkout


def test_resources_are_found_in_a_checkout(tmp_path: Path) -> None:
    for name in resource_files():
        assert resource_path(*name.split("/")) == ROOT / "Resources" / name
    checkout = copy_source(tmp_path / "checkout")
    assert Path(run_python(PRINT_PACKED, checkout)) == checkout / "Resources/Protocols/deeper/packed.toml"


def test_a_missing_resource_says_where_it_was_looked_for() -> None:
    with pytest.raises(RTDigitalTwinError, match=r"Protocols/absent\.toml: .*searched: .*Resources"):
        resource_path("Protocols", "absent.toml")


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_source(folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_script_and_resource_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    resources = {f"RTDigitalTwinLib/Resources/{name}" for name in [*resource_files(), "Protocols/deeper/packed.toml"]}
    assert names == {*LIBRARY_FILES, *resources}


def test_the_wheel_works_in_a_fresh_environment_without_dependencies(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    printed = run_python(
        f"{PRINT_PACKED}\nimport RTDigitalTwinLib as l; print(l.__version__)", site, scripts / "python"
    )
    path, version = printed.splitlines()
    assert Path(path) == site / "RTDigitalTwinLib/Resources/Protocols/deeper/packed.toml"
    assert version == __version__


def test_the_wheel_offers_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "rt-digital-twin = RTDigitalTwinLib.cli:main" in archive.read(entry_points).decode()


# The Slicer extension

# What the build macro of Slicer does with its arguments, in an application that is not there.
SLICER_STAND_IN = """
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/nothing.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${Slicer_USE_FILE}")
set(Slicer_EXTENSION_CPACK "${Slicer_USE_FILE}")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_SUBDIR;WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  set(place ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR})
  if(MODULE_WITH_SUBDIR)
    get_filename_component(subfolder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
    set(place ${place}/${subfolder})
  endif()
  foreach(file IN LISTS MODULE_SCRIPTS MODULE_RESOURCES)
    get_filename_component(folder ${file} DIRECTORY)
    install(FILES ${file} DESTINATION ${place}/${folder})
  endforeach()
endfunction()
"""


def cmake_text(folder: str) -> str:
    return re.sub(r"(?m)^\s*#.*", "", (ROOT / folder / "CMakeLists.txt").read_text(encoding="utf-8"))


def cmake_list(folder: str, variable: str) -> list[str]:
    """Values of a set(VARIABLE ...) with the module's name filled in."""
    text = cmake_text(folder)
    (name,) = re.findall(r"set\(MODULE_NAME (\w+)\)", text)
    (values,) = re.findall(rf"set\({variable}\s([^)]*)\)", text)
    return values.replace("${MODULE_NAME}", name).split()


def test_the_module_lists_every_file_of_its_folder() -> None:
    listed = cmake_list("RTDigitalTwin", "MODULE_PYTHON_SCRIPTS") + cmake_list(
        "RTDigitalTwin", "MODULE_PYTHON_RESOURCES"
    )
    folder = ROOT / "RTDigitalTwin"
    files = {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert sorted(listed) == sorted(files - {"CMakeLists.txt"})


def test_the_lists_take_every_script_of_the_library() -> None:
    scripts = re.findall(r"file\(GLOB_RECURSE MODULE_PYTHON_SCRIPTS ([^)]*)\)", cmake_text("RTDigitalTwinLib"))
    assert [words.split()[-1] for words in scripts] == ["*.py"]
    assert "WITH_SUBDIR" in cmake_text("RTDigitalTwinLib")
    # A file of any other kind in the library would be left behind.
    kinds = {p.suffix for p in (ROOT / "RTDigitalTwinLib").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert kinds <= {".py", ".txt"}


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The qt-scripted-modules folder that CMake installs, with another module's Resources beside ours."""
    if not (shutil.which("cmake") and (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))):
        pytest.skip("CMake and a C compiler are needed to install the extension")
    folder = tmp_path_factory.mktemp("extension")
    source, slicer, build = copy_source(folder / "source"), folder / "slicer", folder / "build"
    (source / "README.md").touch()
    slicer.mkdir()
    (slicer / "SlicerConfig.cmake").write_text(SLICER_STAND_IN)
    (slicer / "nothing.cmake").touch()
    prefix = folder / "installed"
    for command in (
        ["-S", source, "-B", build, f"-DSlicer_DIR={slicer}", f"-DCMAKE_INSTALL_PREFIX={prefix}"],
        ["--build", build, "--target", "install"],
    ):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    modules = prefix / "lib/Slicer-5.12/qt-scripted-modules"
    (modules / "Resources/Protocols").mkdir()
    (modules / "Resources/Protocols/foreign.toml").touch()
    return modules


def test_the_extension_installs_library_module_and_resources(extension: Path) -> None:
    installed = {p.relative_to(extension).as_posix() for p in extension.rglob("*") if p.is_file()}
    module = cmake_list("RTDigitalTwin", "MODULE_PYTHON_SCRIPTS") + cmake_list(
        "RTDigitalTwin", "MODULE_PYTHON_RESOURCES"
    )
    resources = {f"Resources/RTDigitalTwin/{name}" for name in [*resource_files(), "Protocols/deeper/packed.toml"]}
    assert installed == {*LIBRARY_FILES, *module, *resources, "Resources/Protocols/foreign.toml"}


def test_resources_are_found_in_an_installed_extension(extension: Path) -> None:
    assert Path(run_python(PRINT_PACKED, extension)) == (
        extension / "Resources/RTDigitalTwin/Protocols/deeper/packed.toml"
    )


OPEN_INSTALLED = """
import sys
from pathlib import Path
modules = Path(sys.argv[1])
sys.path[:0] = [str(modules), sys.argv[2]]  # Testing comes from the checkout, all else from the extension
from Testing.host.session import slicer_application
with slicer_application() as host:
    module = host.load_module(modules / "RTDigitalTwin.py")
    import RTDigitalTwinLib
    print(Path(RTDigitalTwinLib.__file__).is_relative_to(modules), module.ui.loadSampleButton.enabled, host.uncaught)
"""


def test_the_installed_module_opens_in_the_test_host(extension: Path) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed: the installed module was NOT opened")
    pytest.importorskip("PySide6.QtWidgets", reason="PySide6 is not installed: the installed module was NOT opened")
    command = [sys.executable, "-I", "-c", OPEN_INSTALLED, str(extension), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=extension.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "[]"]


def test_another_modules_resources_are_not_taken_for_ours(extension: Path) -> None:
    code = (
        "from RTDigitalTwinLib.errors import RTDigitalTwinError\n"
        "from RTDigitalTwinLib.resources import resource_path\n"
        "try: print(resource_path('Protocols', 'foreign.toml'))\n"
        "except RTDigitalTwinError: print('refused')"
    )
    assert run_python(code, extension) == "refused"


def test_the_extension_says_what_the_index_asks_for() -> None:
    text = cmake_text(".")
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        assert re.search(rf'set\(EXTENSION_{name} "[^"]+"\)', text), name
    (icon,) = re.findall(r'set\(EXTENSION_ICONURL "[^"]*?/main/([^"]+)"\)', text)
    assert (ROOT / icon).is_file()
    entry = json.loads((ROOT / "RTDigitalTwin.json").read_text(encoding="utf-8"))
    assert entry["category"] == "Radiotherapy"
    assert entry["tier"] in (1, 3, 5)
    (depends,) = re.findall(r'set\(EXTENSION_DEPENDS "([^"]+)"\)', text)
    assert entry["build_dependencies"] == depends.split()


@pytest.mark.parametrize("name", ["RTDigitalTwin.png", "RTDigitalTwin-dark.png"])
def test_icons_are_128_pixels_square_with_transparency(name: str) -> None:
    header = (ROOT / "RTDigitalTwin/Resources/Icons" / name).read_bytes()[:26]
    width, height, depth, colour_type = struct.unpack(">IIBB", header[16:26])
    assert (header[:8], width, height, depth, colour_type) == (b"\x89PNG\r\n\x1a\n", 128, 128, 8, 6)


def test_the_panel_binds_each_parameter_once() -> None:
    panel = ElementTree.parse(ROOT / "RTDigitalTwin/Resources/UI/RTDigitalTwin.ui")
    bound = [p.findtext("string") for p in panel.iter("property") if p.get("name") == "SlicerParameterName"]
    folder = ROOT / "RTDigitalTwin/RTDigitalTwinPanels"
    wrapper = (folder / "parameters.py").read_text(encoding="utf-8").partition("@parameterNodeWrapper")[2]
    parameters = set(re.findall(r"^    (\w+): ", wrapper, re.MULTILINE))
    # The prediction is no choice of the user's; actions, curves, overlays and endpoints are those that there are.
    by_hand = {"prediction", "overlay", "addedActions", "uncheckedActions", "chosenCurves", "shownAction", "courseNtcp"}
    assert sorted(map(str, bound)) == sorted(parameters - by_hand)
    named = {w.get("name") for w in panel.iter("widget")}
    for source in (*folder.glob("*.py"), ROOT / "RTDigitalTwin/RTDigitalTwin.py"):
        assert set(re.findall(r"\bui\.(\w+)", source.read_text(encoding="utf-8"))) <= named, source.name


# What is said


def tracked_texts() -> list[Path]:
    """Files of the project a person reads or runs, but for the tests."""
    names = ("*.md", "*.txt", "*.toml", "*.cff", "*.json", "*.py", "*.ui", "*.j2", "Makefile")
    hidden = {"out", "build", "dist", "Testing"}
    return [
        path
        for name in names
        for path in ROOT.rglob(name)
        if not any(part.startswith(".") or part in hidden for part in path.relative_to(ROOT).parts)
    ]


DOCUMENTS = ["README.md", "Resources/Models/MODEL_CARD.md", "CHANGELOG.md"]
DOCUMENTS += [f"docs/{page}.md" for page in ("dicom", "dosimetry", "recalibration", "slicer")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_and_picture_of_a_document_is_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?://|#", t)]
    assert [t for t in targets if not (ROOT / document).parent.joinpath(t).is_file()] == []
    assert document != "README.md" or len(targets) >= 6


def test_nothing_waits_to_be_filled_in() -> None:
    texts = tracked_texts()
    assert {"README.md", "pyproject.toml", "cli.py", "report.html.j2", "Makefile"} <= {path.name for path in texts}
    waiting = re.compile(r"@@|\bTODO\b|\bFIXME\b|\bXXX\b|\bTBD\b|lorem ipsum", re.IGNORECASE)
    assert [path.name for path in texts if waiting.search(path.read_text(encoding="utf-8"))] == []


def test_the_readme_names_options_that_exist() -> None:
    from RTDigitalTwinLib.cli import _parser

    commands = re.findall(r"^ *(?:\.venv/bin/)?rt-digital-twin (.+)$", README, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets


# Versions


def test_python_is_the_one_of_the_wheels_everywhere() -> None:
    assert project()["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text()
    assert "3.11 to 3.13" in README and "3.11 to 3.13" in (ROOT / "constraints.txt").read_text()


def test_what_is_installed_is_what_is_needed() -> None:
    from RTDigitalTwinLib.doctor import NEEDED_PACKAGES

    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert {re.split("[<>=]", name)[0] for name in dependencies} == set(NEEDED_PACKAGES)


def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def test_one_version_everywhere() -> None:
    citation = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert (project()["version"], citation[0], changes[0]) == (__version__,) * 3


def test_every_dependency_has_one_exact_version_and_no_source() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "an exact version, no local one, no source"
    constrained = [re.split("==", line)[0].lower().replace("_", "-") for line in lines]
    assert len(constrained) == len(set(constrained))
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    wanted = [*project()["dependencies"], *extras["scene"], *extras["test"]]  # type: ignore[misc]
    assert {re.split(r"[<>=]", name)[0].lower() for name in wanted} <= set(constrained)
