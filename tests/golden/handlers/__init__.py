"""One handler a kind of golden file. A new system is a new file here and one line below."""

from tests.golden.handlers import hsvit, hwscaling, hydravit
from tests.golden.vectors import Handler

HANDLERS: dict[tuple[str, str], Handler] = {
    **hsvit.HANDLERS,
    **hydravit.HANDLERS,
    **hwscaling.HANDLERS,
}
