"""Files that are written within a URL: data:image/png;base64,..., as OpenAI's messages have them."""

import base64
import binascii
import re

from jaxfusion.errors import UserError

PREFIX = re.compile(r"data:[\w.+-]+/[\w.+-]+(;[\w-]+=[\w.+-]+)*;base64,", re.ASCII | re.IGNORECASE)


def content_of(url: str) -> bytes | None:
    """The file's bytes; None for what is no data URL. Raises UserError for one that is not in base64."""
    if url[:5].lower() != "data:":
        return None
    try:
        if prefix := PREFIX.match(url):
            return base64.b64decode(url[prefix.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        pass
    raise UserError("the data URL is not in base64")
