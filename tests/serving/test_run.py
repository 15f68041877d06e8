"""What a server says of itself."""

import pytest

from jaxfusion.serving.run import KEYS, announcement

ELSEWHERE = "on other machines, this machine's name takes the place of {}".format
OPEN = f"others reach it, and it asks for no key; set {KEYS}"


@pytest.mark.parametrize(
    ("host", "keys", "shown", "more"),
    [
        ("127.0.0.1", False, "127.0.0.1", []),
        ("::1", False, "[::1]", []),
        ("0.0.0.0", True, "127.0.0.1", [ELSEWHERE("127.0.0.1")]),
        ("0.0.0.0", False, "127.0.0.1", [ELSEWHERE("127.0.0.1"), OPEN]),
        ("::", True, "[::1]", [ELSEWHERE("[::1]")]),
        ("192.0.2.7", False, "192.0.2.7", [OPEN]),
    ],
)
def test_the_address_that_is_told_can_be_opened(host, keys, shown, more):
    served, page, *others = announcement(host, 8000, "captions", keys)
    assert served == f"captions is served at http://{shown}:8000/v1"
    assert page == f"to talk with it, open http://{shown}:8000/ in a browser"
    assert others == more
