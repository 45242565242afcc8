"""One errand at a time beside the window: progress, time left, and a cancel that ends it without waiting."""

import time

import qt
import slicer
from slicer.i18n import tr as _

from RTDigitalTwinLib import background
from RTDigitalTwinLib.errors import Cancelled, RTDigitalTwinError

_LOOK_MS = 50  # a look and what it shows take 2 ms
_LEAST_DONE_RATIO = 0.1  # of which the time left is told


class Task:
    """Runs an errand and brings its result home.

    ``changed`` is called whenever there is news; ``message``, ``done_ratio`` and ``seconds_left`` tell it.
    """

    def __init__(self, changed):
        self._changed = changed
        self._timer = qt.QTimer()
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self._look)
        self._errand = self._work = self._room = self._landed = None
        self._ending = []  # cancelled work, until it has ended
        self._started = 0.0
        self.message, self.done_ratio = "", 0.0

    @property
    def isRunning(self):
        return self._work is not None

    @property
    def secondsLeft(self):
        """None where it cannot be told yet."""
        if self.done_ratio < _LEAST_DONE_RATIO:
            return None
        return (time.monotonic() - self._started) * (1 - self.done_ratio) / self.done_ratio

    def start(self, errand, landed=None):
        """Begin an errand; ``landed`` is called with its result. Returns whether it began: errors are shown."""
        if self.isRunning:
            slicer.util.warningDisplay(_("Wait for the computation under way, or cancel it."))
            return False
        self._errand, self._landed, self._started = errand, landed, time.monotonic()
        self.message, self.done_ratio = errand.title, 0.0
        try:
            self._room = background.new_folder()
            errand.prepare(self._room)
            self._work = background.start(self._room)
        except Exception as error:
            self._end(_("Not started."))
            self.report(errand, error)
            return False
        self._timer.start()
        self._changed()
        return True

    def cancel(self):
        """End the errand with all it started; nothing lands, and the next may begin at once."""
        if self._work is not None:
            self._work.cancel()
            self._ending.append(self._work)
            self._room = None  # it goes when the work has ended
            self._end(_("Cancelled. The scene is as it was."))

    def close(self):
        """The window is closed: end what is under way and the process that waits for more."""
        self.cancel()
        self._timer.stop()
        background.end_process()
        while self._ending:  # no timer looks at it any more
            background.abandon(self._ending.pop())

    def report(self, errand, error):
        """Tell the user what went wrong."""
        self.message = _("{title}: not done.").format(title=errand.title)
        self._changed()
        if isinstance(error, Cancelled):
            return
        if isinstance(error, RTDigitalTwinError):
            slicer.util.errorDisplay(str(error))
        else:
            what = _("{title} failed ({kind}). The scene is as it was.")
            slicer.util.errorDisplay(
                what.format(title=errand.title, kind=type(error).__name__), detailedText=str(error)
            )

    def _look(self):
        self._dropEnded()
        work = self._work
        if work is None:
            return
        if not work.poll():
            self.done_ratio, told = background.progress_of(work.folder)
            self.message = f"{self._errand.title}: {told}" if told else self._errand.title
            self._changed()
            return
        self._timer.stop()  # landing may let events through; it starts again where it is needed
        errand, landed, room = self._errand, self._landed, self._room
        try:
            background.require_done(room, work.exit_code)
            slicer.app.pauseRender()
            try:
                result = errand.land(room)
            finally:
                slicer.app.resumeRender()
        except Exception as error:
            self._end("")
            self.report(errand, error)
            return
        seconds = time.monotonic() - self._started
        self._end(_("{title}: done in {seconds:.0f} s.").format(title=errand.title, seconds=seconds))
        if landed is not None:
            landed(result)

    def _dropEnded(self):
        """Take away the rooms of cancelled work that has ended."""
        ended = [work for work in self._ending if work.poll()]
        for work in ended:
            background.drop(work.folder)
            self._ending.remove(work)
        if not (self._ending or self._work):
            self._timer.stop()

    def _end(self, message):
        if self._ending:
            self._timer.start()
        else:
            self._timer.stop()
        if self._room is not None:
            background.drop(self._room)
        self._errand = self._work = self._room = self._landed = None
        self.message, self.done_ratio = message, 0.0
        self._changed()
