"""What is installed: where from, with what files, and asking for what."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pytest

import fastae
from fastae import cli, tables

PACKAGE_DATA = ["py.typed", "data/digits.npz", "data/digits.txt"]
PACKAGE_DATA += ["include/fastae.h", "__init__.pxd", "cython_kernels.pxd", "kernels/abi.txt"]


@pytest.fixture
def requirements():
    try:
        return metadata.requires("fastae") or []
    except metadata.PackageNotFoundError:
        pytest.skip("fastae is imported from a checkout and not installed")


def test_tests_run_against_the_installed_wheel():
    installed = os.environ.get("FASTAE_TEST_INSTALLED")
    if not installed:
        pytest.skip("FASTAE_TEST_INSTALLED names the environment of the wheel; .ci/run sets it")
    assert Path(fastae.__file__).resolve().is_relative_to(Path(installed).resolve())


def test_version_is_the_same_everywhere(requirements):
    assert metadata.version("fastae") == fastae.__version__


@pytest.mark.parametrize("name", PACKAGE_DATA)
def test_package_data_is_there(name):
    assert resources.files("fastae").joinpath(name).is_file()


def test_attribution_is_complete():
    text = (resources.files("fastae") / "data" / "digits.txt").read_text(encoding="utf-8")
    for needed in ("Alpaydin", "Kaynak", "10.24432/C50P49", "Attribution 4.0", "Changes"):
        assert needed in text


def test_numpy_is_the_one_dependency(requirements):
    assert [r for r in requirements if "extra ==" not in r] == ["numpy>=1.26"]


def test_extras(requirements):
    extras = {re.search(r"extra == ['\"](\w+)", r)[1] for r in requirements if "extra ==" in r}
    assert extras == {
        "numba",
        "plots",
        "progress",
        "data",
        "images",
        "files",
        "onnx",
        "sklearn",
        "demo",
        "test",
        "bench",
        "peers",
        "lint",
        "all",
    }


def test_demo_extra_has_what_the_commands_write_with():
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("pyproject.toml is not beside the tests")
    (demo,) = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]["demo"]
    assert set(re.search(r"\[(.*)\]", demo)[1].split(",")) == {"files", "numba", "plots", "progress"}


def test_sdist_takes_every_folder_of_the_checkout():
    root = Path(__file__).resolve().parents[1]
    if not (root / "MANIFEST.in").is_file():
        pytest.skip("MANIFEST.in is not beside the tests")
    lines = (root / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    grafted = {line.split()[1] for line in lines if line.startswith(("graft ", "recursive-include "))}
    with_code = {path.parent.name for path in root.glob("*/*.py")} - {"build"}
    assert {"examples", "tests"} <= with_code <= grafted


def test_command_starts_without_importing_numpy():
    code = (
        "import sys\n"
        "from fastae.cli import main\n"
        "try:\n"
        "    main(['--version'])\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "heavy = {'numpy', 'numba', 'pooch', 'scipy', 'matplotlib', 'sklearn', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_readme_commands_run(tmp_path, monkeypatch, capsys, require):
    """Those of the section "Command line", but for bench, which times."""
    readme = Path(__file__).resolve().parents[1] / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not beside the tests")
    for name in ("safetensors", "sklearn", "matplotlib"):
        require(name)
    text = readme.read_text(encoding="utf-8")
    (block,) = re.findall(r"^## Command line\n+```sh\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    tables.write("rows.csv", {"x": np.random.default_rng(0).normal(size=(200, 6))})
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert {arguments[0] for arguments in commands} == {"fastae"}
    for arguments in commands:
        if arguments[1] == "bench":
            assert arguments[2] in fastae.models.MODELS
        else:
            assert cli.main(arguments[1:]) == 0, capsys.readouterr().err
    made = {"rows.csv", "run", "codes.csv", "flags.csv", "model.c"}
    assert {path.name for path in tmp_path.iterdir()} == made
    names = {"mlp.safetensors", "history.csv", "learning-curve.png"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    assert tables.read("flags.csv").values[:, 1].sum() == 6  # 3 %


def test_readme_examples_run(tmp_path, monkeypatch, capsys):
    readme = Path(__file__).resolve().parents[1] / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not beside the tests")
    for name, reason in fastae.available_backends().items():
        if reason is not None:
            pytest.skip(f"the README uses every backend: {name}: {reason}")
    pytest.importorskip("matplotlib")
    pytest.importorskip("safetensors")
    pytest.importorskip("onnx")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    names = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, "README.md", "exec"), names)
    finally:
        fastae.set_backend(None)
    printed = capsys.readouterr().out
    assert "numpy" in printed
    assert "dense_forward" in printed
    assert names["codes"].shape == (297, 32)
    assert names["history"].loss[-1] < 0.0012
    assert names["history"].val_loss[-1] < 0.0013
    assert names["record"].val_loss[-1] < 0.075
    assert names["stopping"].best == min(names["record"].val_loss)
    assert names["saved"].history.val_loss == names["record"].val_loss
    assert names["Z"].shape == (297, 16)
    assert -0.012 < names["ae"].score(names["D"][1500:]) < -0.009
    assert (names["detector"].predict(names["noise"]) == -1).all()
    assert (names["detector"].predict(names["D"]) == -1).sum() == 53
    for name in ("learning-curve.png", "denoiser.onnx", "encoder.c", "detector.c"):
        assert (tmp_path / name).is_file()
