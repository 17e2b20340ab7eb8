"""One model that keeps its latency promise while the load changes: the server behind `anyvit serve`.

    request -> intake (bounds) -> service (bytes to pixels, queue) -> engine process -> answer
                                     |
                                 controller (time and costs in, decision out)

`controller.py` and `service_times.py` decide, and know no clock, no socket and no model; `simulator.py` plays them
through. `app.py` writes it down for HTTP, `http.py` listens, `settings.py` is all that a server is told.
"""
