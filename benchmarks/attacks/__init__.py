"""Attacks, overload and faults against a real server, and what it still does meanwhile.

`__main__` has the table of all attacks and writes the page. `connections`,
`calls` and `faults` hold the attacks, one function each. `service` runs the
server, `storms` runs the attackers in processes of their own, and `probes`
times the bystanders and says what was asked.
"""
