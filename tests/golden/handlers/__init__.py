"""One handler a kind of golden file. A new system is a new file here and one line below."""

from tests.golden.handlers import (
    asvit,
    dimap,
    edvit,
    elasticvit,
    evit,
    hsvit,
    hwscaling,
    hydravit,
    repavit,
    s2,
    vitresnas,
)
from tests.golden.vectors import Handler

HANDLERS: dict[tuple[str, str], Handler] = {
    **asvit.HANDLERS,
    **dimap.HANDLERS,
    **edvit.HANDLERS,
    **elasticvit.HANDLERS,
    **evit.HANDLERS,
    **hsvit.HANDLERS,
    **hydravit.HANDLERS,
    **hwscaling.HANDLERS,
    **repavit.HANDLERS,
    **s2.HANDLERS,
    **vitresnas.HANDLERS,
}
