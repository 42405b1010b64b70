"""Engines: each opens a site and hands back a ``concurrent.futures.Executor``. What a chunk is may not enter."""
