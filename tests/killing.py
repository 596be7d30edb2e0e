"""Processes of a test's own that end in the middle of their work."""

import os
import signal


def forked(action):
    """The id of a process that does this and ends, with 0 if nothing was raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(step, *names):
    """This process is killed before the step-th call of any of these functions of `os`."""
    left = [step]

    def watched(call):
        def replacement(*given, **named):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*given, **named)

        return replacement

    for name in names:
        setattr(os, name, watched(getattr(os, name)))
