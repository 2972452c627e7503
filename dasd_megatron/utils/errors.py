"""The exceptions that tools turn into one line and an exit code: a mistake that a user can fix, and a run told to stop."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can fix: the message names the file, the place and the remedy.

    Tools print the message without a traceback and exit with 2. Anything else that is raised is a defect of ours.
    """


class Stopped(Exception):
    """A signal asked the run to stop, and nothing is lost: the same command resumes from here.

    Its message is empty where a child process has already said it.
    """

    EXIT_CODE = 75  # sysexits.h's "try again", which schedulers can tell from success, failure (2) and Ctrl-C (130)
