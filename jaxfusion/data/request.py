"""What is asked, in the words of `config.data.prompt`, where it has any."""

import re
from collections.abc import Iterator

from jaxfusion.config.run import DataConfig
from jaxfusion.errors import UserError

# What a task puts where: the placeholder, and whether each request must have it.
PLACEHOLDERS: dict[str, tuple[str, bool]] = {
    "caption": ("", False),
    "question_answer": ("question", True),
    "classify": ("text", False),
    "summarize": ("document", True),
}
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def request(text: str, config: DataConfig) -> tuple[str, ...]:
    """The text of a request, as parts of a message: none, where there is nothing to say.

    text: what the task asks: a question with its choices, a document, ... Braces in it mean nothing.
    """
    said = PLACEHOLDER.sub(lambda _: text, config.prompt) if config.prompt else text
    return (said,) if said else ()


def as_asked(text: str, config: DataConfig) -> str:
    """A person's own prompt as training had asked it: put in its place, or, where there is none and it is empty, the
    prompt of the config."""
    if PLACEHOLDER.search(config.prompt):
        return PLACEHOLDER.sub(lambda _: text, config.prompt)
    return text or config.prompt


def check_prompt(config: DataConfig, setting: str) -> None:
    """Raises UserError, by the setting's name, for a prompt that cannot be said. setting: "config.data.prompt"."""
    if not config.prompt:
        return
    if config.task not in PLACEHOLDERS:
        raise UserError(f"{setting}: the task {config.task!r} asks nothing in words of its own; take it away")
    name, needed = PLACEHOLDERS[config.task]
    wanted = f"{{{name}}}" if name else "no placeholder"
    for found in _names(config.prompt):
        if found != name or not name:
            raise UserError(f"{setting}: {{{found}}} is nothing of the task {config.task!r}; it has {wanted}")
    if needed and name not in _names(config.prompt):
        raise UserError(f"{setting}: the task {config.task!r} asks by it; put {wanted} where its {name} is to stand")


def _names(prompt: str) -> Iterator[str]:
    return (found[1] for found in PLACEHOLDER.finditer(prompt))
