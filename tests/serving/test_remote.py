"""Other hosts: whom the server asks, and what it takes from them."""

import http.client
import http.server
import threading
import time

import pytest

from jaxfusion.serving.errors import ApiError
from jaxfusion.serving.remote import UnfitError, fetch, get, is_public, public_address


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:4700::6810:84e5", True),
        ("127.0.0.1", False),
        ("10.0.0.7", False),
        ("172.16.3.4", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d70e", True),
    ],
)
def test_only_addresses_of_the_internet_are_public(address, public):
    assert is_public(address) is public


def test_a_name_of_a_private_address_is_refused():
    with pytest.raises(UnfitError, match="localhost has no public address"):
        public_address("localhost")
    with pytest.raises(ApiError, match="localhost has no public address"):
        fetch("https://localhost/a.png", ["localhost"], 100, "url")


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/a.png",
        "https://a.example.other.example/a.png",
        "https://a.example@other.example/",
        "https://user:word@a.example/a.png",
        "https://a.example:8443/a.png",
        "https://a.example:99999999/",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://[::1",
        "http://a.example/a.png",
        "https:///a.png",
        "https://a.example\\@other.example/",
    ],
)
def test_only_named_hosts_are_asked(url):
    """None of them is looked up: the error is of the URL alone."""
    with pytest.raises(ApiError, match="url: (a URL is|not a URL|this server asks a.example alone)") as error:
        fetch(url, ["a.example"], 100, "url")
    assert error.value.status_code == 400


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302 if self.path == "/redirect" else 200)
        self.send_header("Location", "http://169.254.169.254/latest")
        self.end_headers()
        for _ in range(2 if self.path == "/slow" else 1):
            self.wfile.write(b"x" * 50)
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_what_an_answer_may_be(port):
    def ask(path, limit=1000, seconds=10.0):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        return get(connection, path, limit, time.monotonic() + seconds)

    assert ask("/picture") == b"x" * 50
    with pytest.raises(UnfitError, match="it answered 302, and redirects are not followed"):
        ask("/redirect")
    with pytest.raises(UnfitError, match="it has more than 49 bytes"):
        ask("/picture", limit=49)
    with pytest.raises(UnfitError, match="it took longer"):
        ask("/slow", seconds=0.01)
