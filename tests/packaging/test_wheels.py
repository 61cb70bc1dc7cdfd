"""Wheels of every distribution: what they hold, and that they work in a clean environment."""

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
RECIPES = {"image": "mae-vit-tiny", "video": "videomae-vit-tiny", "pointcloud": "point-mae-vit-tiny"}
PROJECTS = {"mim_core": ROOT, **{f"mim_{name}": ROOT / "plugins" / name for name in PLUGINS}}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    target = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(project)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return {path.name.split("-")[0]: path for path in target.glob("*.whl")}


def dependencies(folder, only=None):
    """A folder that links to this environment's packages but our own, as a place to import them from: all, or those of
    some distributions."""
    folder.mkdir()
    wanted = {
        file.parts[0]
        for found in importlib.metadata.distributions()
        if only is None or canonicalize_name(found.name) in only
        for file in found.files or ()
    }
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = entry.name.replace("-", "_").startswith(("mim_", "_mim_", "__editable__")) or entry.suffix == ".pth"
        if not ours and (only is None or entry.name in wanted):
            (folder / entry.name).symlink_to(entry)
    return folder


def environment(folder, wheels, only=None):
    """A fresh environment with these wheels, which finds everything else by a .pth file."""
    venv.create(folder / "venv")  # pip comes by the .pth file, and setuptools as new as torch asks for
    site = next(folder.glob("venv/lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{dependencies(folder / 'dependencies', only)}\n")
    install = ["install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", *map(str, wheels)]
    subprocess.run([str(folder / "venv/bin/python"), "-m", "pip", *install], check=True)
    return folder / "venv"


@pytest.fixture(autouse=True)
def nothing_else_is_found(monkeypatch):
    """A checkout that PYTHONPATH names would be imported in place of the wheels."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def clean(wheels, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("clean"), wheels.values())


def names_in(path):
    return [name for name in zipfile.ZipFile(path).namelist() if not name.endswith("/")]


def test_each_wheel_holds_its_package_and_licence_and_nothing_else(wheels):
    assert set(wheels) == set(PROJECTS)
    for package, path in wheels.items():
        names = set(names_in(path))
        about = {name for name in names if name.startswith(f"{package}-0.1.0.dist-info/")}
        home = PROJECTS[package] / ("core" if package == "mim_core" else "")
        ours = [file for file in (home / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert names - about == {file.relative_to(home).as_posix() for file in ours}
        kinds = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}
        assert sorted(name.rpartition("/")[2] for name in about) == sorted(kinds)
        assert f"{package}/py.typed" in names
        assert path.stat().st_size < 8_000_000


def test_wheels_carry_their_data(wheels):
    assert "mim_core/templates/report.html.jinja" in names_in(wheels["mim_core"])
    sample = [name for name in names_in(wheels["mim_image"]) if "/sample/" in name]
    assert len([name for name in sample if name.endswith(".gz")]) == 4
    assert "mim_image/sample/LICENSE" in sample
    clips = [name for name in names_in(wheels["mim_video"]) if "/sample/" in name]
    assert len([name for name in clips if name.endswith(".mp4")]) == 480
    assert "mim_video/sample/LICENSE" in clips
    shapes = [name for name in names_in(wheels["mim_pointcloud"]) if "/sample/" in name]
    assert len([name for name in shapes if name.endswith(".npy")]) == 1
    assert "mim_pointcloud/sample/LICENSE" in shapes
    frames = [name for name in names_in(wheels["mim_multimodal"]) if "/sample/" in name]
    assert len([name for name in frames if "/rgb/" in name and name.endswith(".jpg")]) == 1200
    assert {"mim_multimodal/sample/LICENSE", "mim_multimodal/sample/CREDITS"} <= set(frames)


def test_plugins_require_the_core_and_extras_point_at_plugins(wheels):
    def requirements(package):
        archive = zipfile.ZipFile(wheels[package])
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        return [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]

    for name in PLUGINS:
        assert any("mim-core" in line and "<0.2" in line for line in requirements(f"mim_{name}"))
        extras = [line.replace("'", '"') for line in requirements("mim_core") if f"mim-{name}" in line]
        assert any(f'extra == "{name}"' in line for line in extras)


@pytest.mark.slow
def test_scripts_run_in_a_clean_environment(clean, tmp_path):
    def run(*command):
        done = subprocess.run([clean / "bin" / command[0], *command[1:]], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    shown = run("mim-core", "plugins")
    assert all(f"mim-{name}" in shown for name in PLUGINS)
    assert "FAILED" not in shown
    where = run(
        "python",
        "-c",
        f"import {', '.join(PROJECTS)}; print({', '.join(f'{package}.__file__' for package in PROJECTS)})",
    )
    assert where.count(str(clean)) == len(PROJECTS), "the checkout was imported, not the wheels"
    assert "No broken requirements found" in run("python", "-m", "pip", "check")
    for name in PLUGINS:
        recipe = RECIPES.get(name, "multimae-vit-tiny")
        assert recipe in run(f"mim-{name}", "recipes")
        run(f"mim-{name}", "pretrain", recipe, "--twin", "--out", name, "--quiet")
        assert (tmp_path / name / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_core_alone_works_and_says_what_it_lacks(wheels, tmp_path):
    place = environment(tmp_path, [wheels["mim_core"]])

    def run(*command):
        return subprocess.run([place / "bin/mim-core", *command], capture_output=True, text=True, cwd=tmp_path)

    assert "core:random" in run("list", "maskers").stdout
    assert "mim-image" not in run("plugins").stdout
    assert run("doctor").returncode == 0
    asked = run("pretrain", "multimodal:multimae-vit-tiny")
    assert asked.returncode == 2
    assert 'pip install "mim-core[multimodal]"' in " ".join(asked.stderr.split())


@pytest.mark.slow
def test_an_extra_names_all_that_it_needs(wheels, tmp_path):
    """What a user types: the registry has it all, and nothing else is needed to train. What pip would install is linked
    from this environment, for torch and what it needs take 5 GB."""
    venv.create(tmp_path / "pip/venv", with_pip=True)
    pip = [str(tmp_path / "pip/venv/bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "download", "--no-deps", "--dest", str(tmp_path), "--retries", "0", "pluggy"]).returncode:
        pytest.skip("no package registry can be reached")
    asked = ["--dry-run", "--no-cache-dir", "--report", str(tmp_path / "report.json")]
    found = ["--find-links", str(wheels["mim_core"].parent)]
    subprocess.run([*pip, "install", *asked, *found, "mim-core[video]"], check=True)
    plan = json.loads((tmp_path / "report.json").read_text())["install"]
    names = {canonicalize_name(each["metadata"]["name"]) for each in plan}
    assert {name for name in names if name.startswith("mim-")} == {"mim-core", "mim-video"}
    assert {"torch", "timm", "pluggy", "av"} <= names
    place = environment(tmp_path / "own", [wheels["mim_core"], wheels["mim_video"]], {*names, "pip"})
    trained = [place / "bin/mim-video", "pretrain", "videomae-vit-tiny", "--twin", "--quiet", "--out", "run"]
    subprocess.run(trained, check=True, cwd=tmp_path)
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
