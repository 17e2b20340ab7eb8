"""One handler a kind of golden file. A new system is a new file here and one line below."""

from tests.golden.handlers import dimap, edvit, evit, hsvit, hwscaling, hydravit, repavit, s2
from tests.golden.vectors import Handler

HANDLERS: dict[tuple[str, str], Handler] = {
    **dimap.HANDLERS,
    **edvit.HANDLERS,
    **evit.HANDLERS,
    **hsvit.HANDLERS,
    **hydravit.HANDLERS,
    **hwscaling.HANDLERS,
    **repavit.HANDLERS,
    **s2.HANDLERS,
}
