"""Sessions: when one is over, and who makes room for whom."""

from types import SimpleNamespace

import pytest

from sam_med2d.app import store
from sam_med2d.app.store import Quotas, Refused, Sessions


@pytest.fixture
def clock(monkeypatch):
    time = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(store.time, "monotonic", lambda: time.now)
    monkeypatch.setattr(Sessions, "_look_later", lambda self: None)  # there is no loop here
    return time


class Something:
    """What people work on, with a volume open."""

    scan: object = "a volume"

    def close(self) -> None:
        self.scan = None


def sessions(tmp_path, **quotas) -> Sessions:
    limits = Quotas(**{**dict(sessions=2, idle=100, file=10, session=20, total=30, silent=30), **quotas})
    return Sessions(tmp_path, Something, limits, "it is over")


def test_signs_of_life_keep_a_session_until_it_is_idle(tmp_path, clock):
    all_of_them = sessions(tmp_path)
    held = all_of_them.create()
    for _ in range(4):
        clock.now += 20
        assert all_of_them.find(held.key, used=False) is held
    clock.now += 25
    with pytest.raises(Refused, match="it is over") as refused:
        all_of_them.find(held.key, used=False)
    assert refused.value.http_status == 410 and not held.folder.exists()
    assert held.session.scan is None  # a request that still knows the session does not keep its volume open


def test_a_silent_session_is_over(tmp_path, clock):
    all_of_them = sessions(tmp_path)
    held, other = all_of_them.create(), all_of_them.create()
    clock.now += 20
    all_of_them.find(other.key)
    clock.now += 20
    with pytest.raises(Refused):
        all_of_them.find(held.key)
    assert all_of_them.find(other.key) is other


def test_one_more_than_there_may_be_is_refused(tmp_path, clock):
    all_of_them = sessions(tmp_path)
    all_of_them.create()
    all_of_them.create()
    with pytest.raises(Refused, match="all 2 sessions") as refused:
        all_of_them.create()
    assert refused.value.http_status == 503


def test_room_is_what_the_session_and_all_together_may_have(tmp_path, clock):
    all_of_them = sessions(tmp_path)
    one, other = all_of_them.create(), all_of_them.create()
    one.bytes = 15
    assert (all_of_them.room(one), all_of_them.room(other)) == (5, 15)
