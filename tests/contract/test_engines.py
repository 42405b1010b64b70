"""The built-in engines keep the contract that other engines are held to."""

from executors.contract import EngineContract


class TestIterative(EngineContract):
    engine_name = "iterative"


class TestFutures(EngineContract):
    engine_name = "futures"


class TestDask(EngineContract):
    engine_name = "dask/local"


class TestParsl(EngineContract):
    engine_name = "parsl/local"
