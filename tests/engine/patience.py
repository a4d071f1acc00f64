"""How long tests wait for what does not come: one number, for all of them.

It is the end of what hangs, never a measure of speed: a busy machine gives a test a hundredth of
a processor, and that is no failure. A test waits for events, and compares no time with a limit.
"""

from __future__ import annotations

PATIENCE_SECONDS = 300.0
