from typing import Annotated

import msgspec
import pytest

from meshbus.runtime.settings import SettingsError, explain, load_settings


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: Annotated[str, msgspec.Meta(description="where")] = "127.0.0.1:1"
    ttl_s: int = 60
    loud: bool = False


def test_environment_wins_over_the_file() -> None:
    got = load_settings(
        Example, "MESHBUS_CA", {"MESHBUS_CA_TTL_S": "5"}, {"ttl_s": 7, "loud": True}
    )
    assert got == Example(ttl_s=5, loud=True)


def test_unknown_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="'lisen'"):
        load_settings(Example, "MESHBUS_CA", {}, {"lisen": "x"})


def test_wrong_value_is_named() -> None:
    with pytest.raises(SettingsError, match="ttl_s"):
        load_settings(Example, "MESHBUS_CA", {"MESHBUS_CA_TTL_S": "soon"})


def test_explain() -> None:
    assert ("MESHBUS_CA_LISTEN", "127.0.0.1:1", "where") in explain(Example, "MESHBUS_CA")
