"""What runs need of memory: looked up, predicted, probed and shown.

It is measured in ``work`` (``memory``, ``limits``), and kept to there while a run goes on (``sizing``).
"""
