"""The one error type that the command line shows as a single line."""


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, an impossible setting.

    The message is one line that names the thing and the mend. `jaxfusion.main` prints it without a traceback
    and exits with code 2; library callers catch it as any exception.
    """


class RecordError(UserError):
    """One record that nothing can be learned from: a broken picture, a line that is not JSON, an empty text.

    where: the file, and the line or member of it. `config.data.bad_records` says whether a run goes on without it.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)  # both, so that it can be passed between processes
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"
