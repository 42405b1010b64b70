"""Engines: each opens a site and hands back a ``concurrent.futures.Executor``. No chunk may enter."""
