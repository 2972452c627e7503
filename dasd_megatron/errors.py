"""The one exception for mistakes a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: the message names the file, the place and the remedy.

    Tools print the message without a traceback and exit with 2. Anything else that is raised is a defect of ours.
    """
