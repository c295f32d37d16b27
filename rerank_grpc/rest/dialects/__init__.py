"""One file per dialect: decode and encode. None of them knows a socket.

base.py      the common call and reply
fields.py    reads fields out of a JSON body
"""
