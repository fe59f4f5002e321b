"""Several listeners as one."""

from __future__ import annotations

from stillroom.stages.events import Event, Listen


def all_of(*listeners: Listen) -> Listen:
    """A listener that tells every one of these; what one raises is raised once all have heard.

    >>> heard = []
    >>> all_of(heard.append, heard.append)("event")
    >>> heard
    ['event', 'event']
    """

    def tell(event: Event) -> None:
        errors = []
        for listen in listeners:
            try:
                listen(event)
            except Exception as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(listeners)} listeners failed", errors)

    return tell
