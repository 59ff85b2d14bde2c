"""What the package logs, for tests that read it."""

import logging


class Log(logging.Handler):
    """Collects what is of the level, or above."""

    def __init__(self, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self.texts: list[str] = []
        logging.getLogger("portmanager").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.levelname} {record.getMessage()}")
