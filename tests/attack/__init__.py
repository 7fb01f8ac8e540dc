"""The attacks: what they do to a daemon, what they record, and how the records are judged.

Read `crash` first (load, kills, judgment), then `actors` (which make the load), `checks` and `linearizability` (the
judges), `receipts` and `wakeups` (two more attacks), and last `seeded_daemon` (defects that the judges must find).
"""
