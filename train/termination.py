"""SIGTERM while training: a scheduler wants its machine back, and the run is to go on elsewhere."""

REQUEUE = 75  # exit code: "temporary failure, try again" of sysexits.h


class Terminated(KeyboardInterrupt):
    """The step that was running is finished and saved."""
