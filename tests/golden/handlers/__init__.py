"""One handler a kind of golden file. A new system is a new file here and one line below."""

from tests.golden.handlers import edvit, hsvit, hwscaling, hydravit
from tests.golden.vectors import Handler

HANDLERS: dict[tuple[str, str], Handler] = {
    **edvit.HANDLERS,
    **hsvit.HANDLERS,
    **hydravit.HANDLERS,
    **hwscaling.HANDLERS,
}
