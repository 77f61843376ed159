"""Makes the package importable and says where the golden vectors are."""

import sys
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PYTHON))


@pytest.fixture(scope="session")
def golden() -> Path:
    return PYTHON.parents[1] / "tests" / "data" / "golden"
