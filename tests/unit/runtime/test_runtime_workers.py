"""What several workers of a service share, and what is refused."""

import itertools

import pytest

from meshbus.local.control_plane import service_commands
from meshbus.local.home import Home, HomeError, parse_settings
from meshbus.runtime.process import plan_process, with_workers
from meshbus.runtime.settings import SettingsError
from meshbus.runtime.ticket_keys import KEY_BYTES, TicketRing, Told
from meshbus.runtime.worker_metrics import merge_metrics


def test_a_key_is_known_before_its_turn_and_for_two_turns_after() -> None:
    count = iter(range(100))
    ring = TicketRing(lambda size: bytes([next(count)]) * size)
    turns = [ring.keys]
    for _ in range(6):
        ring.turn()
        turns.append(ring.keys)
    for before, after in itertools.pairwise(turns):
        assert after[0] == before[1], "the next becomes the current one"
        assert before[0] in after, "what was encrypted with is still taken"
        assert len(set(after)) == len(after) <= 4
    assert turns[0][0] in turns[2]
    assert turns[0][0] not in turns[3]
    assert all(len(key) == KEY_BYTES for key in ring.keys)


def test_keys_do_not_show() -> None:
    told = Told([b"secret" * 8])
    assert "secret" not in repr(told)
    assert "secret" not in str(told)


def test_metrics_of_workers_are_told_apart() -> None:
    page = "# HELP a_total How often.\n# TYPE a_total counter\n"
    text = merge_metrics(
        {"0": page + 'a_total{type="x"} 3.0\n', "1": page + 'a_total{type="x"} 4.0\n'}
    ).decode()
    assert text.count("# TYPE") == 1
    assert 'a_total{type="x",worker="0"} 3.0' in text
    assert 'a_total{type="x",worker="1"} 4.0' in text


def test_only_one_service_alone_has_workers() -> None:
    env = with_workers(["xds-gateway"], {}, 3)
    assert plan_process(["xds-gateway"], env).workers == 3
    assert plan_process(["xds-gateway"], {}).workers == 1
    for names in (["ca"], ["xds-gateway", "ca"]):
        with pytest.raises(SettingsError, match="--workers is for one service"):
            with_workers(names, {}, 2)
    with pytest.raises(SettingsError, match="serve it alone"):
        plan_process(["ca", "xds-gateway"], {"MESHBUS_XDS_GATEWAY_WORKERS": "2"})


@pytest.mark.parametrize("processes", ["one", "separate"])
def test_the_workers_of_a_home_have_a_process_that_keeps_them(tmp_path, processes: str) -> None:
    text = f"xds: {{workers: 2}}\nservices: {{processes: {processes}}}"
    commands = service_commands(Home(tmp_path), parse_settings(text, "settings.yaml"), {})
    assert commands["service/xds-gateway"].argv[-1] == "xds-gateway"
    others = [c for name, c in commands.items() if name != "service/xds-gateway"]
    assert all("xds-gateway" not in command.argv for command in others)


def test_a_home_has_at_least_one_worker() -> None:
    with pytest.raises(HomeError, match="workers"):
        parse_settings("xds: {workers: 0}", "settings.yaml")
