"""The folders of an opened engine: private where modes count, refused where they do not."""

from __future__ import annotations

import os
import stat

import pytest

from executors.engines import places
from executors.engines.base import Resources
from executors.errors import SiteError


def test_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        with places.Places("dask", Resources(scratch=tmp_path)) as made:
            assert stat.S_IMODE(made.private.stat().st_mode) == 0o700
            assert list(made.private.iterdir()) == []
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", sorted(places.MODELESS))
def test_no_keys_where_modes_say_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(places, "kind_of", lambda _: kind)
    with pytest.raises(SiteError, match=f"{kind}.*--outputdir"):
        places.Places("dask", Resources(scratch=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_keys_where_modes_are_not_kept(tmp_path, monkeypatch):
    make = places.tempfile.mkdtemp

    def open_to_all(**about):
        folder = make(**about)
        os.chmod(folder, 0o755)
        return folder

    monkeypatch.setattr(places.tempfile, "mkdtemp", open_to_all)
    with pytest.raises(SiteError, match="keys cannot be kept secret"):
        places.Places("dask", Resources(scratch=tmp_path))


def test_not_where_anybody_could_exchange_it(tmp_path):
    """The private folder's name can be given to another folder by whoever may write to any folder above it."""
    wide = tmp_path / "wide"
    base = wide / "runs"
    base.mkdir(parents=True)
    wide.chmod(0o777)
    with pytest.raises(SiteError, match=rf"{wide} can be written by everybody.*chmod o-w {wide}"):
        places.Places("dask", Resources(scratch=base))
    assert list(base.iterdir()) == []
    wide.chmod(0o1777)  # as /tmp
    with places.Places("dask", Resources(scratch=base)):
        pass
