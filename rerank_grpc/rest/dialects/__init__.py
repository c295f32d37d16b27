"""One file per dialect, decode and encode, without I/O.

base.py      the decoded call and the reply
fields.py    fields of a JSON body
pairs.py     pairs of texts: one request for each query
"""
