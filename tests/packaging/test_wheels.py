"""Wheels of every distribution: what they hold, and that they work in a clean environment."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
PROJECTS = {"mim_core": ROOT, **{f"mim_{name}": ROOT / "plugins" / name for name in PLUGINS}}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    target = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(project)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return {path.name.split("-")[0]: path for path in target.glob("*.whl")}


@pytest.fixture(scope="module")
def clean(wheels, tmp_path_factory):
    """A fresh environment with the wheels, and everything else by a .pth file to this one's packages, less our own."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--force-reinstall",
        *wheels.values(),
    ]
    subprocess.run(list(map(str, install)), check=True)
    return folder


def names_in(path):
    return [name for name in zipfile.ZipFile(path).namelist() if not name.endswith("/")]


def test_each_wheel_holds_its_package_and_licence_and_nothing_else(wheels):
    assert set(wheels) == set(PROJECTS)
    for package, path in wheels.items():
        names = names_in(path)
        tops = {name.split("/")[0] for name in names}
        assert tops == {package, next(top for top in tops if top.endswith(".dist-info"))}
        assert any(name.endswith("LICENSE") and ".dist-info" in name for name in names)
        assert f"{package}/py.typed" in names
        assert not [name for name in names if "test_" in name or "__pycache__" in name]
        assert path.stat().st_size < 6_000_000


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
    assert "mae-vit-tiny" in run("mim-image", "recipes")
    where = run(
        "python",
        "-c",
        f"import {', '.join(PROJECTS)}; print({', '.join(f'{package}.__file__' for package in PROJECTS)})",
    )
    assert where.count(str(clean)) == len(PROJECTS), "the checkout was imported, not the wheels"
    run("mim-image", "pretrain", "mae-vit-tiny", "--twin", "--out", "r", "--quiet")
    assert (tmp_path / "r/report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_core_alone_works_and_says_what_it_lacks(wheels, tmp_path):
    venv.create(tmp_path / "core", with_pip=True)
    site = next((tmp_path / "core").glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(tmp_path / "core/bin/python")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheels["mim_core"])], check=True
    )
    environ = {"MIM_CORE_DISABLE": ",".join(PLUGINS), "PATH": ""}
    listed = subprocess.run([python, "-m", "mim_core", "list", "maskers"], capture_output=True, text=True, env=environ)
    assert "core:random" in listed.stdout
    asked = subprocess.run(
        [python, "-m", "mim_core", "pretrain", "multimodal:multimae"], capture_output=True, text=True, env=environ
    )
    assert asked.returncode == 2
    assert "The plugin 'multimodal' is switched off" in asked.stderr
