"""What a wheel of ours holds."""

from __future__ import annotations

import zipfile

import pytest

from tests.conftest import ROOT
from tests.wheels import build_wheel


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> list[str]:
    return zipfile.ZipFile(build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))).namelist()


def test_it_has_one_package_and_nothing_beside_it(names):
    first = {name.split("/")[0] for name in names}
    assert {name for name in first if not name.endswith(".dist-info")} == {"sglang_rpc"}


def test_it_has_all_modules_the_patches_and_the_marker_of_types(names):
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "sglang_rpc").rglob("*.py")}
    assert sources <= {*names}
    assert "sglang_rpc/py.typed" in names
    patches = [path.name for path in (ROOT / "patches").glob("*.json")]
    assert patches
    assert all(f"sglang_rpc/_patches/{name}" in names for name in patches)


def test_it_has_the_entry_point_and_the_licence(names):
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)
    assert any(name.endswith("/LICENSE") for name in names)
    assert any(name.endswith("/NOTICE") for name in names)
