"""Keys travel as subjects and come back as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshbus.model.keys import Key, escape_token, key_of, subject_of, unescape_token

TEXT = st.text(max_size=20)


@given(TEXT)
def test_any_text_is_one_token_and_comes_back(text: str) -> None:
    token = escape_token(text)
    assert token
    assert not set(token) & set(" .*>\r\n\t")
    assert unescape_token(token) == text


@given(st.builds(Key, *[TEXT] * 6))
def test_any_key_comes_back(key: Key) -> None:
    assert key_of(subject_of(key)) == key


@pytest.mark.parametrize("token", ["a=ZZ", "a=", "=C3", "a=E2=82"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError):
        unescape_token(token)
