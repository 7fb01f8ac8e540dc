"""The attacks: what they do to a daemon, what they write down, and how that is judged.

Read `crash` first (load, kills, judgment), then `actors` (who makes the load), `checks` and `linearizability` (the
judges), `receipts` and `wakeups` (two more attacks), and last `seeded_daemon` (defects that the judges must find).
"""
