"""The tables, as a tuple of migrations: entry N takes a database from `user_version` N to N + 1. Append only.

Times are integer milliseconds since the epoch. JSON columns hold compact JSON text or NULL for "nothing".
"""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "create table meta (key text primary key, value text not null) strict, without rowid",
        """create table channel (
            name text primary key, id text not null unique, description text, tags text,
            created_by text, created_at integer not null) strict""",
        """create table agent (
            id text primary key, role text, capabilities text not null, grp text, channel text not null,
            metadata text, webhook_url text, webhook_secret text, ack text not null, activity text,
            registered_at integer not null, last_heartbeat integer not null,
            delivered_through integer not null default 0, deregistered_at integer) strict""",
        """create table member (
            channel text not null, agent_id text not null, joined_at integer not null,
            primary key (channel, agent_id)) strict, without rowid""",
        "create index member_agent on member (agent_id)",
        # A message is written once and never changed; `delivery` holds what happens to it.
        """create table message (
            id integer primary key autoincrement, channel text not null, sender text not null, addressed text not null,
            content text not null, subject text, type text, thread text, reply_to integer,
            priority integer not null default 0, metadata text, sent_at integer not null, expires_at integer) strict""",
        "create index message_channel on message (channel, id)",
        "create index message_expires on message (expires_at) where expires_at is not null",
        "create index message_thread on message (thread, id) where thread is not null",
        # `trays` names the states
        """create table delivery (
            agent_id text not null, message_id integer not null, channel text not null,
            priority integer not null default 0, state integer not null default 0, due_at integer,
            deliveries integer not null default 0, fetched_at integer, settled_at integer, reason text,
            primary key (agent_id, message_id)) strict, without rowid""",
        # exactly the order in which a poll reads, so a poll costs the same with ten stored messages or a million
        "create index delivery_open on delivery (agent_id, priority desc, message_id) where state = 0",
        "create index delivery_message on delivery (message_id)",
        "create index delivery_leased on delivery (agent_id, message_id) where state = 1",
        # settled mail that is old enough to be purged, and leases that expire
        "create index delivery_due on delivery (due_at) where due_at is not null",
        # A search brings the full-text index up to date; if a send did, every send would pay for it.
        "create table searched (through integer not null) strict",
        "insert into searched values (0)",
        # status: the seven in the API, and 'delayed': pending, but not before due_at
        """create table task (
            seq integer primary key autoincrement, id text not null unique, channel text not null,
            description text not null, posted_by text not null, required_capability text,
            priority integer not null default 0, metadata text, assigned_to text, status text not null,
            due_at integer, owner text, fence integer not null default 0, attempts integer not null default 0,
            max_attempts integer not null, claim_timeout_ms integer, result text, error text,
            created_at integer not null, claimed_at integer, completed_at integer) strict""",
        # what a claim reads, in its order
        """create index task_open on task (channel, required_capability, priority desc, seq)
            where status = 'pending' and assigned_to is null""",
        """create index task_assigned on task (assigned_to, channel, priority desc, seq)
            where status = 'pending' and assigned_to is not null""",
        # what the timekeeper must do: expire leases, end delays
        "create index task_due on task (due_at) where due_at is not null",
        "create index task_owner on task (owner, seq) where status = 'claimed'",
        "create index task_list on task (channel, status, priority desc, seq)",
        "create index task_done on task (completed_at) where completed_at is not null",
        """create table task_history (
            task integer not null, at integer not null, act text not null, agent_id text, fence integer not null,
            note text) strict""",
        "create index task_history_task on task_history (task)",
        """create table task_need (
            task integer not null, needs integer not null, primary key (task, needs)) strict, without rowid""",
        "create index task_need_needs on task_need (needs)",
        """create table state (
            channel text not null, key text not null, value text, version integer not null,
            deleted integer not null default 0, updated_by text, updated_at integer not null,
            primary key (channel, key)) strict""",
        """create table state_version (
            channel text not null, key text not null, version integer not null, value text,
            deleted integer not null default 0, updated_by text, updated_at integer not null,
            primary key (channel, key, version)) strict, without rowid""",
        # the writer assigns ids, in commit order
        """create table event (
            id integer primary key, kind text not null, channel text, agents text, data text not null,
            at integer not null) strict""",
        """create table idempotency (
            scope text not null, path text not null, key text not null, body blob not null, status integer not null,
            answer text not null, at integer not null, primary key (scope, path, key)) strict, without rowid""",
        "create index idempotency_at on idempotency (at)",
    ),
    (
        # A document, too, is written once; the messages that refer to it keep it from being purged.
        """create table document (
            id text primary key, content_type text not null, title text, tags text, created_by text,
            created_at integer not null, size integer not null, content text not null) strict""",
        "create index document_created on document (created_at)",
        "alter table message add column content_ref text",
        "alter table message add column truncated integer",
        "alter table message add column mentions text",
        "create index message_document on message (content_ref) where content_ref is not null",
        # The text that a search covers: for a message that shows only a preview, the document. The index is rebuilt.
        """create view message_text as select m.id, m.subject, case when m.truncated then
            (select substr(d.content, 1, 1000000) from document d where d.id = m.content_ref)
            else m.content end as content from message m""",
        "drop table if exists message_words",
        "update searched set through = 0",
    ),
    # archived by its reader; true only of settled mail
    ("alter table delivery add column archived integer",),
    (
        # Where events are sent: an agent's doorbell (agent_id is set), or an endpoint that events are forwarded to. A
        # doorbell's row holds the one ring that may be pending (wire_id to tries).
        """create table webhook (
            id text primary key, agent_id text unique, url text not null, secret text not null,
            old_secret text, old_until integer, types text, channel text, ordered integer not null default 1,
            cursor integer not null default 0, wire_id text, message_id integer, unread integer, asked_at integer,
            tries integer not null default 0, due_at integer, notified_through integer not null default 0,
            notified_at integer, failures integer not null default 0, failing_since integer, last_error text,
            disabled_at integer, disabled_for text, created_at integer not null) strict""",
        """create table attempt (
            id integer primary key, webhook text not null, agent_id text, wire_id text not null, kind text not null,
            subject integer not null, try integer not null, at integer not null, ms integer not null, status integer,
            error text, retry_at integer) strict""",
        "create index attempt_webhook on attempt (webhook, id)",
        "create index attempt_at on attempt (at)",
    ),
    (
        # the keys that sign tokens; `epoch` is the database's, so that a database that went back in time makes new keys
        """create table token_key (
            kid text primary key, secret blob not null, epoch text not null, made_at integer not null,
            until integer) strict, without rowid""",
        "create table token_revoked (jti text primary key, until integer not null) strict, without rowid",
        "create table token_epoch (agent_id text primary key, epoch integer not null) strict, without rowid",
    ),
    (
        # the note of a handoff; the thread whose answer the task waits for; whether the daemon assigned it
        "alter table task add column handoff text",
        "alter table task add column waiting_thread text",
        "alter table task add column auto integer",
        "create index task_waiting on task (waiting_thread) where waiting_thread is not null",
    ),
    (
        # what was hashed can be rebuilt from these columns, see `chain`; `at` is the time of the commit and never
        # decreases
        """create table audit (
            seq integer primary key, at integer not null, ts integer not null, action text not null,
            actor text not null, target text not null, channel text not null, outcome text not null,
            request_id text not null, body blob not null, calls integer not null, hash blob not null) strict""",
    ),
    (
        # Holds whatever has failed once, so that no retention period deletes it; `webhooks` names the states.
        """create table forward (
            webhook text not null, event_id integer not null, wire_id text not null, kind text not null,
            body text not null, state integer not null default 0, tries integer not null default 0, due_at integer,
            error text, at integer not null, primary key (webhook, event_id, wire_id)) strict, without rowid""",
        "create index forward_open on forward (webhook, event_id) where state = 0",
    ),
    # tasks that the daemon has assigned and nobody has claimed yet
    ("create index task_auto on task (assigned_to) where auto = 1",),
    # the licensor's last command for each license: ends it, or restores it
    (
        """create table sigil (
            lic_id text primary key, serial integer not null, cmd text not null, at integer not null)
            strict, without rowid""",
    ),
    # A send must change as few pages as possible: new rows go next to the last ones, and move once to their reader's
    # part. (Copied twice, because renaming a table takes longer than creating all the other tables of a new database.)
    (
        """insert or ignore into meta select 'message_floor', cast(seq as text) from sqlite_sequence
            where name = 'message'""",
        "drop view message_text",
        "create table kept as select * from message order by id",
        "drop table message",
        # the writer assigns ids; `meta` remembers purged ones, so that none is assigned twice
        """create table message (
            id integer primary key, channel text not null, sender text not null, addressed text not null,
            content text not null, subject text, type text, thread text, reply_to integer,
            priority integer not null default 0, metadata text, sent_at integer not null, expires_at integer,
            content_ref text, truncated integer, mentions text) strict""",
        """insert into message select id, channel, sender, addressed, content, subject, type, thread, reply_to,
            priority, metadata, sent_at, expires_at, content_ref, truncated, mentions from kept order by rowid""",
        "drop table kept",
        "create index message_channel on message (channel, id)",
        "create index message_expires on message (expires_at) where expires_at is not null",
        "create index message_thread on message (thread, id) where thread is not null",
        "create index message_document on message (content_ref) where content_ref is not null",
        """create view message_text as select m.id, m.subject, case when m.truncated then
            (select substr(d.content, 1, 1000000) from document d where d.id = m.content_ref)
            else m.content end as content from message m""",
        "create table kept as select * from delivery indexed by delivery_message order by message_id, agent_id",
        "drop table delivery",
        """create table delivery (
            message_id integer not null, agent_id text not null, channel text not null,
            priority integer not null default 0, state integer not null default 0, due_at integer,
            deliveries integer not null default 0, fetched_at integer, settled_at integer, reason text,
            archived integer, primary key (message_id, agent_id)) strict, without rowid""",
        """insert into delivery select message_id, agent_id, channel, priority, state, due_at, deliveries, fetched_at,
            settled_at, reason, archived from kept order by rowid""",
        "drop table kept",
        # An inbox in order: `open` is what a poll takes in order of arrival, `urgent` what it takes before or after
        # that, `rest` everything that is not in `open`. The columns at the end save a look-up in the table.
        """create index delivery_open on delivery (agent_id, message_id, channel, state, priority)
            where state = 0 and priority = 0""",
        """create index delivery_urgent on delivery (agent_id, priority desc, message_id, channel, state)
            where state = 0 and priority <> 0""",
        """create index delivery_rest on delivery (agent_id, message_id, channel, state, priority, settled_at, archived)
            where state > 0 or priority <> 0""",
        "create index delivery_leased on delivery (agent_id, message_id, state) where state = 1",
        "create index delivery_dead on delivery (agent_id, message_id, state) where state = 3",
        "create index delivery_due on delivery (due_at) where due_at is not null",
    ),
    # the mark, beyond which deliveries may be fresh, see `filing`
    ("insert into meta select 'filed', coalesce(max(message_id), 0) from delivery",),
    # requeued after its message's time to live ran out, which therefore does not concern it any more
    ("alter table delivery add column revived integer",),
    # messages that reply to one of another thread, with that thread: there, they are answers, too
    (
        "create table aside (message_id integer primary key, thread text not null, sender text not null) strict",
        "create index aside_thread on aside (thread, message_id)",
    ),
    # The index of words is rebuilt, letter by letter for scripts that have no spaces between words.
    ("drop table if exists message_words", "update searched set through = 0"),
    # It is rebuilt once more: it still had the words of messages that were purged long ago.
    ("drop table if exists message_words", "update searched set through = 0"),
    # keys whose old values are to be purged
    ("create index state_deleted on state (updated_at) where deleted = 1",),
)

APPLICATION_ID = 0x53544D58  # "STMX", so that `file` and stonemux itself recognize the database
