"""Real batch systems and other servers for the tests, each in a folder of its own and stopped by process number."""
