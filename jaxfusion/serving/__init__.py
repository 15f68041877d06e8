"""A model behind OpenAI's HTTP interface."""

from importlib.util import find_spec

from jaxfusion.errors import UserError

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def check_extra() -> None:
    """Raises UserError where the packages that serving needs are not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f'--mode serve: {", ".join(missing)} cannot be imported; pip install -e ".[serve]"')
