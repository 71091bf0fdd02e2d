"""Headers of raw messages."""

from meshbus.bus.client import headers_of


def test_headers_are_read_as_they_stand() -> None:
    block = b"NATS/1.0\r\nNats-Batch-Id: abc\r\nNats-Batch-Commit:1\r\nX: a: b\r\n\r\n"
    assert headers_of(block) == {"Nats-Batch-Id": "abc", "Nats-Batch-Commit": "1", "X": "a: b"}


def test_an_answer_of_the_server_has_a_status() -> None:
    assert headers_of(b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 7\r\n\r\n") == {
        "Status": "408",
        "Description": "Request Timeout",
        "Nats-Pending-Messages": "7",
    }
    assert headers_of(b"NATS/1.0 100 Idle Heartbeat\r\n\r\n")["Status"] == "100"
    assert headers_of(b"NATS/1.0 503\r\n\r\n") == {"Status": "503", "Description": ""}


def test_what_is_no_header_is_passed_over() -> None:
    assert headers_of(b"NATS/1.0\r\nnonsense\r\n\xff: \xff\r\n\r\n")
