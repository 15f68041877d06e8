"""The one error type that the command line shows as a single line."""


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, an impossible setting.

    The message is one line that names the thing and the mend. `jaxfusion.main` prints it without a traceback
    and exits with code 2; library callers catch it as any exception.
    """
