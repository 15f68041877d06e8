import pytest
from openai import OpenAI

from tests.serving.running import Serving, serving, tiny_model


@pytest.fixture(scope="session")
def tiny():
    return tiny_model()


@pytest.fixture(scope="session")
def served(tiny):
    with serving(*tiny) as running:
        yield running


@pytest.fixture(scope="session")
def client(served: Serving):
    with OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client
