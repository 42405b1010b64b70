
from executors.work.model import Kind
import traceback
def classify(e):
    if isinstance(e, MemoryError): return Kind.MEMORY
    if isinstance(e, (ConnectionError, TimeoutError)): return Kind.PASSING
    for f in traceback.extract_tb(e.__traceback__)[::-1]:
        if "/uproot/" in f.filename: return Kind.BAD
        if "site-packages" not in f.filename and "executors" not in f.filename: return Kind.USER
    return Kind.BAD if isinstance(e, OSError) else Kind.USER
def frames(e): return tuple(f"{f.filename}:{f.lineno} in {f.name}: {f.line}" for f in traceback.extract_tb(e.__traceback__) if "site-packages" not in f.filename)
