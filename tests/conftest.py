"""Every test process has a cache of its own: none reads or fills the user's, and none waits for another's."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
